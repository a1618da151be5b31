"""Attention mask as data: index and segment of each query and key."""

from typing import Literal, NamedTuple

from jaxtyping import Array, Int

EMPTY = -1
"""Segment of a slot that holds no token."""

MaskKind = Literal["rows", "parts"]
"""`rows`: queries and keys are the same slots. `parts`: keys may be those of another part of the
row, as in a ring."""


class Mask(NamedTuple):
    """Index and segment of queries and keys.

    A query sees the keys of its own segment up to its own index. Indexes are positions in the
    original row, whatever the order in which the row is laid out. An empty slot neither sees nor
    is seen.
    """

    q_index: Int[Array, " S"]
    k_index: Int[Array, " T"]
    q_segments: Int[Array, "B S"]
    k_segments: Int[Array, "B T"]

    @property
    def kind(self) -> MaskKind:
        """Kind of the mask, known while tracing: `rows` if both sides are the same arrays."""
        same = self.q_index is self.k_index and self.q_segments is self.k_segments
        return "rows" if same else "parts"
