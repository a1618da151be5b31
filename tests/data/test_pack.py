"""Packing loses nothing, and says how much each target counts."""

import numpy as np
import pytest

from lwm.data.example import Example
from lwm.data.pack import Packer, PackingConfig, Placed, fill_row
from lwm.tokens import TokenSpace

SPACE = TokenSpace(text=100, vision=20, codes=10)


def example(length, name=0, vision=0):
    """Distinct ids, of which the last `vision` are codes; all but the first are learnt."""
    ids = np.arange(length + 1, dtype=np.int32) % 100
    ids[len(ids) - vision :] = 100 + np.arange(vision) % 10
    learn = np.ones(length + 1, bool)
    learn[0] = False
    return Example(ids=ids, loss_mask=learn, name=str(name))


def lengths(rows):
    return [[piece.slots for piece in row] for row in rows]


def test_best_fit_fills_what_first_fit_leaves():
    given = [example(n) for n in (6, 5, 4, 3)]
    assert lengths(Packer(PackingConfig(length=9, fit="first")).pack(given)) == [[5, 4], [6, 3]]
    given = [example(n) for n in (5, 6, 3, 4)]
    assert lengths(Packer(PackingConfig(length=9, fit="first")).pack(given)) == [[5, 3], [6], [4]]
    assert lengths(Packer(PackingConfig(length=9, fit="best")).pack(given)) == [[6, 3], [5, 4]]


def test_of_too_many_open_rows_the_fullest_goes():
    packer = Packer(PackingConfig(length=10, open_rows=2))
    assert lengths(packer.add(example(6))) == []
    assert lengths(packer.add(example(8))) == []
    assert lengths(packer.add(example(5))) == [[8]]
    assert lengths(packer.rows) == [[6], [5]]


def test_long_examples_are_split_or_dropped():
    packer = Packer(PackingConfig(length=10))
    rows = list(packer.pack([example(25)]))
    assert lengths(rows) == [[10], [10], [5]]
    targets = np.concatenate(
        [fill_row(row, packer.config, SPACE).targets[: row[0].slots] for row in rows]
    )
    np.testing.assert_array_equal(targets, example(25).ids[1:])
    packer = Packer(PackingConfig(length=10, long="drop"))
    assert list(packer.pack([example(25)])) == []
    assert packer.dropped == 1


def test_nothing_is_lost_and_little_is_wasted():
    draw = np.random.default_rng(0)
    given = [example(int(n), number) for number, n in enumerate(draw.integers(1, 400, 500))]
    packer = Packer(PackingConfig(length=512))
    rows = list(packer.pack(given))
    assert sorted(int(piece.example.name) for row in rows for piece in row) == list(range(500))
    assert packer.efficiency > 0.95


@pytest.mark.parametrize("weigh", ["example", "token"])
def test_a_row(weigh):
    given = [
        example(5),
        example(6, vision=2),
        Example(ids=np.arange(3, dtype=np.int32), loss_mask=np.zeros(3, bool), name="prompt"),
    ]
    pieces = [Placed(e, 0, len(e.ids) - 1) for e in given]
    row = fill_row(pieces, PackingConfig(length=15, weigh=weigh), SPACE)
    np.testing.assert_array_equal(row.segments, [0] * 5 + [1] * 6 + [2] * 2 + [-1] * 2)
    np.testing.assert_array_equal(row.positions[:13], [*range(5), *range(6), *range(2)])
    np.testing.assert_array_equal(row.tokens[5:11], given[1].ids[:-1])
    np.testing.assert_array_equal(row.targets[5:11], given[1].ids[1:])
    if weigh == "token":
        np.testing.assert_array_equal(row.weights, [1] * 11 + [0] * 4)
        np.testing.assert_array_equal(row.counts, [9, 2])
    else:
        np.testing.assert_allclose(row.weights, [1 / 5] * 5 + [1 / 4] * 4 + [1 / 2] * 2 + [0] * 4)
        np.testing.assert_array_equal(row.counts, [3, 3])
