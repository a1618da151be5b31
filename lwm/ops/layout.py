"""Orders in which a row is laid out over the devices of `sp`, so that causal work is balanced.

A causal query attends to all that came before it, so a device that holds the end of a row has
more to do than one that holds its beginning. Attention is told each token's index in the row
(`Mask`), and so the order of a row is only a permutation, applied once, to the batch.

    contiguous   0 0 1 1 2 2 3 3   the row as it is: the last device works, the first waits
    zigzag       0 1 2 3 3 2 1 0   a piece from each end: equal work at every step of the ring
    striped      0 1 2 3 0 1 2 3   token by token in turn (Brandon et al. 2023, arXiv 2311.09431)
"""

from typing import Literal

import numpy as np
from jaxtyping import Int

from lwm.errors import UserError

Layout = Literal["contiguous", "zigzag", "striped"]


def order(layout: Layout, length: int, sp: int) -> Int[np.ndarray, " S"]:
    """Returns the index in the row of the token that stands at each place.

    `x[:, order(...)]` lays a batch out, and `x[:, np.argsort(order(...))]` undoes it.

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
