"""Who sees whom, as data: all that attention is told of order, packing and padding."""

from typing import NamedTuple

from jaxtyping import Array, Int

EMPTY = -1
"""The segment of a slot that holds no token."""


class Mask(NamedTuple):
    """Where queries and keys stand: a query sees the keys of its segment up to its own index.

    Indexes are places in the original row, whatever the order in which the row is laid out;
    an empty slot sees nothing and is not seen.
    """

    q_index: Int[Array, " S"]
    k_index: Int[Array, " T"]
    q_segments: Int[Array, "B S"]
    k_segments: Int[Array, "B T"]
