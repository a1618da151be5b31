"""Orders in which a row is laid out over the devices of `sp`, so that causal work is balanced.

A causal query attends to all tokens before it, so a device with the end of a row has more work
than a device with its beginning. Attention takes each token's index in the row as data (`Mask`),
so a layout is only a permutation of the batch, applied once.

    contiguous   0 0 1 1 2 2 3 3   the original order: the last device has most work
    zigzag       0 1 2 3 3 2 1 0   a piece from each end: equal work at every step of the ring
    striped      0 1 2 3 0 1 2 3   token by token in turn (Brandon et al. 2023, arXiv 2311.09431)
"""

from typing import Literal

import numpy as np
from jaxtyping import Int

from lwm.errors import UserError

Layout = Literal["contiguous", "zigzag", "striped"]


def order(layout: Layout, length: int, sp: int) -> Int[np.ndarray, " S"]:
    """Returns the index in the original row of the token at each place.

    `x[:, order(...)]` lays out a batch, and `x[:, np.argsort(order(...))]` restores it.

    Raises:
        UserError: The row does not divide over the devices.
    """
    index = np.arange(length)
    if layout == "contiguous" or sp == 1:
        return index
    pieces = 2 * sp if layout == "zigzag" else sp
    if length % pieces:
        raise UserError(
            f"a row of {length} tokens cannot be laid out {layout} over sp {sp}: "
            f"its length must divide by {pieces}"
        )
    if layout == "striped":
        return index.reshape(-1, sp).T.reshape(-1)
    ends = index.reshape(2 * sp, -1)
    return np.stack([ends[:sp], ends[: sp - 1 : -1]], axis=1).reshape(-1)
