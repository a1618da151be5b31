import pytest

from lwm.tokens import TokenSpace


def test_lwm_space_has_the_numbers_of_the_released_models():
    space = TokenSpace(text=32_000, vision=8_448, codes=8_192)
    assert space.size == space.rows == 40_448 == 512 * 79
    assert (space.end_of_frame, space.end_of_vision) == (40_192, 40_193)


def test_rows_are_padded_so_that_they_split_over_tp():
    assert TokenSpace(text=259).rows == 384
    assert TokenSpace(text=128).rows == 128


def test_of_a_vocabulary_and_a_codebook():
    assert TokenSpace.of(300, 8) == TokenSpace(text=300, vision=10, codes=8)
    assert TokenSpace.of(300, 0) == TokenSpace(text=300)


def test_codebook_must_leave_room_for_its_markers():
    with pytest.raises(ValueError, match="8194 vision ids, but there are 8192"):
        TokenSpace(text=32_000, vision=8_192, codes=8_192)
