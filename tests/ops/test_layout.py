"""Layouts are permutations, and balance the work of a causal row."""

import numpy as np
import pytest

from lwm.errors import UserError
from lwm.ops.layout import order


def test_as_drawn():
    def owners(layout):
        """The device that holds each token of a row of eight, over four."""
        place = np.argsort(order(layout, 8, 4))
        return (place // 2).tolist()

    assert owners("contiguous") == [0, 0, 1, 1, 2, 2, 3, 3]
    assert owners("zigzag") == [0, 1, 2, 3, 3, 2, 1, 0]
    assert owners("striped") == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
@pytest.mark.parametrize("sp", [1, 2, 8])
def test_permutations(layout, sp):
    found = order(layout, 48, sp)
    np.testing.assert_array_equal(np.sort(found), np.arange(48))
    if sp == 1:
        np.testing.assert_array_equal(found, np.arange(48))


@pytest.mark.parametrize("layout", ["zigzag", "striped"])
def test_causal_work_is_balanced(layout):
    visible = np.tril(np.ones((256, 256)))
    laid = visible[np.ix_(order(layout, 256, 8), order(layout, 256, 8))]
    # [device of the queries, device of the keys]
    work = laid.reshape(8, 32, 8, 32).sum((1, 3))
    np.testing.assert_allclose(work.sum(1) / work.sum(1).mean(), 1, atol=0.03)


def test_what_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"24 tokens cannot be laid out zigzag over sp 8.*by 16"):
        order("zigzag", 24, 8)
    with pytest.raises(UserError, match=r"20 tokens cannot be laid out striped over sp 8.*by 8"):
        order("striped", 20, 8)
