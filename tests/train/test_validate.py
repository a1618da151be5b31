"""Held-out loss is the mean over learnt targets, by modality and by position, however batched."""

import jax
import numpy as np
import pytest

from lwm.data.example import Example
from lwm.data.pack import PackingConfig
from lwm.errors import UserError
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace
from lwm.train.validate import HeldOut, position_edges

SPACE = TokenSpace(text=200, vision=50, codes=40)
LENGTHS = (20, 9, 30, 5, 25, 31, 3, 28, 14, 30, 17, 60)


class Given:
    """Text with vision in every other example, not all of it learnt; one cannot be read."""

    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, number):
        if number == 4:
            raise UserError("example 4 is broken")
        draw = np.random.default_rng(number)
        ids = draw.integers(0, SPACE.text, LENGTHS[number])
        if number % 2:
            ids[2:9] = SPACE.text + draw.integers(0, SPACE.codes, len(ids[2:9]))
        learn = draw.random(len(ids)) < 0.7
        return Example(ids=ids.astype(np.int32), loss_mask=learn, name=str(number))


def read(most=100, num_rows=4):
    return HeldOut.read(
        Given(), PackingConfig(length=64), SPACE, most=most, num_rows=num_rows, layout="zigzag"
    )


def one_by_one(model, place, mesh):
    """Negative log-likelihood, modality and position of each learnt target, from logits."""
    found = []
    for number in range(len(LENGTHS)):
        if number == 4:
            continue
        example = Given()[number]
        # One shape for all, so that one program is compiled.
        ids = np.pad(example.ids[:-1], (0, 64 - len(example.ids) + 1))
        logits = np.asarray(model(*place(mesh, ids[None])))[0]
        for position, target in enumerate(example.ids[1:]):
            if example.loss_mask[position + 1]:
                own = slice(SPACE.text, SPACE.size) if target >= SPACE.text else slice(SPACE.text)
                total = np.logaddexp.reduce(logits[position, own])
                found.append((total - logits[position, target], target >= SPACE.text, position))
    return map(np.array, zip(*found, strict=True))


def test_it_is_the_mean_over_targets(mesh, tiny, init, place):
    model = init(tiny(tokens=SPACE))
    nll, is_vision, position = one_by_one(jax.jit(lambda *given: model(*given)), place, mesh)
    found = read().measure(model, mesh)
    assert found["tokens"] == nll.size
    assert found["text_loss"] == pytest.approx(nll[~is_vision].mean(), rel=1e-5)
    assert found["vision_loss"] == pytest.approx(nll[is_vision].mean(), rel=1e-5)
    edges = [(first, end) for first, end, *_ in found["by_position"]]
    assert edges == [(0, 8), (8, 16), (16, 32), (32, 64)]
    for first, end, loss, tokens, error in found["by_position"]:
        here = (position >= first) & (position < end)
        assert tokens == here.sum()
        assert loss == pytest.approx(nll[here].mean(), rel=1e-5)
        assert error == pytest.approx(nll[here].std(ddof=1) / here.sum() ** 0.5, rel=1e-3)


def test_ranges_of_positions_double_from_64():
    assert position_edges(1024) == [0, 64, 128, 256, 512, 1024]
    assert position_edges(600) == [0, 64, 128, 256, 512, 1024]
    assert position_edges(256) == [0, 32, 64, 128, 256]
    assert position_edges(1) == [0, 1]


@pytest.mark.parametrize(("text", "num_rows"), [("1,2,1,2", 4), ("1,1,1,1", 3)])
def test_batches_and_meshes_change_nothing(mesh, tiny, init, text, num_rows):
    model = init(tiny(tokens=SPACE))
    want = read(num_rows=8).measure(model, mesh)
    with jax.set_mesh(other := make_mesh(text)):
        found = read(num_rows=num_rows).measure(init(tiny(tokens=SPACE)), other)
    flat = [[x for x in jax.tree.leaves(each) if x is not None] for each in (found, want)]
    np.testing.assert_allclose(*flat, rtol=1e-5)


def test_a_modality_that_is_not_there_has_no_loss(mesh, tiny, init):
    model = init(tiny(tokens=SPACE))
    assert read(most=1, num_rows=1).measure(model, mesh)["tokens"] > 0

    class Text(Given):
        def __len__(self):
            return 1

    held_out = HeldOut.read(
        Text(), PackingConfig(length=64), SPACE, most=9, num_rows=4, layout="contiguous"
    )
    assert held_out.measure(model, mesh)["vision_loss"] is None


def test_a_set_of_which_nothing_can_be_read():
    class Broken(Given):
        def __getitem__(self, number):
            raise UserError(f"line {number} is no JSON")

    with pytest.raises(UserError, match=r"nothing can be read of a held-out set: line 11 is"):
        HeldOut.read(Broken(), PackingConfig(length=64), SPACE, most=9, num_rows=4, layout="zigzag")
