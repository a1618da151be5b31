"""Grids of lengths and depths, and those that are refused before a model is loaded."""

import pytest

from lwm.errors import UserError
from lwm.eval.needle import run as needle
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.run import check


def test_numbers_of_lengths_and_depths_are_those_of_lwm():
    config = NeedleConfig(lengths=(1000, 32000), num_lengths=4, depths=(0.0, 100.0), num_depths=4)
    assert config.all_lengths == (1000, 11333, 21667, 32000)
    assert config.all_depths == (0, 33, 67, 100)
    assert NeedleConfig(depths=(50.0, 0.0, 50.0)).all_depths == (0, 50)


def test_several_needles_have_a_folder_and_more_room_for_their_answers():
    single, several = NeedleConfig(), NeedleConfig(needles=4, ask=2)
    assert (single.folder, several.folder) == ("needle", "needle-4-2")
    assert (single.answer_tokens, several.answer_tokens) == (64, 160)
    # Prompts that ask for fewer of the same needles have the same room.
    assert NeedleConfig(needles=4).answer_tokens == 160


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rounds": 0}, "rounds 0"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"needles": 70}, "needles 70 are more than the 69 cities"),
        ({"needles": 2, "ask": 3}, "ask 3 is more than needles 2"),
        ({"lengths": ()}, "lengths are empty"),
        ({"depths": (0.0, 101.0)}, "depths 0, 101 must be percents"),
        ({"depths": (float("nan"),)}, "must be percents"),
        ({"lengths": (64,)}, "length 64 leaves no room"),
        ({"num_depths": 1}, "num_depths 1 spreads"),
        ({"lengths": (1000,), "num_lengths": 3}, "num_lengths 3 spreads"),
    ],
)
def test_impossible_grids_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        NeedleConfig(**changes)


def test_the_small_grid_is_small():
    cells = len(needle.SMALL.all_depths)
    assert sum(needle.SMALL.all_lengths) * cells < 20_000


def test_what_cannot_be_done_is_said_before_the_model_is_loaded(tmp_path, prose):
    with pytest.raises(UserError, match=r"length 4,096 is above the context of the model, 2,048"):
        check(NeedleConfig(), tmp_path, context=2048)
    with pytest.raises(UserError, match=r"Moby-Dick, chapters 1-3 has 52,\d+ bytes, too few"):
        check(NeedleConfig(lengths=(10**6,)), tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        check(NeedleConfig(haystack=tmp_path / "absent.txt"), tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        check(NeedleConfig(), prose(1) / "out")
    check(NeedleConfig(lengths=(10**6,), repeat=True), tmp_path / "new" / "folder")
