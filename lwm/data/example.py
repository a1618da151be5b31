"""Training examples and batches: token ids, their loss mask, and rows of packed examples."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

MaskedIds = tuple[Sequence[int] | np.ndarray, bool]
"""Ids, and whether the model is trained on them."""

MODALITIES = ("text", "vision")
"""Order of the last axis of `counts`, and of all figures by modality."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One training example: ids of text and vision tokens, and their loss mask."""

    ids: Int[np.ndarray, " n"]
    loss_mask: Bool[np.ndarray, " n"]
    """True where a token counts as a target of the loss."""
    name: str
    """Source and line, for messages."""

    @classmethod
    def join(cls, pieces: Iterable[MaskedIds], *, name: str) -> "Example":
        """Concatenates pieces."""
        ids, mask = [np.zeros(0, np.int32)], [np.zeros(0, bool)]
        for piece, is_target in pieces:
            ids.append(np.asarray(piece, np.int32))
            mask.append(np.full(len(piece), is_target))
        return cls(ids=np.concatenate(ids), loss_mask=np.concatenate(mask), name=name)

    def __len__(self) -> int:
        return len(self.ids)


class Batch(NamedTuple):
    """Rows of packed examples, as NumPy arrays or on a mesh.

    An empty slot has segment -1 and weight 0.
    """

    tokens: Shaped[Any, "B S"]
    targets: Shaped[Any, "B S"]
    """The id that follows each token in its own example."""
    segments: Shaped[Any, "B S"]
    """Number of the example in its row, -1 in empty slots."""
    positions: Shaped[Any, "B S"]
    """Positions within the example."""
    weights: Shaped[Any, "B S"]
    """Weight of each target in the loss. Where all examples weigh the same: 1 over the number of
    targets of its example and modality."""
    counts: Shaped[Any, "B M"]
    """Divisors of the weighted losses by modality, to be summed over all rows of a step: the
    number of examples, with or without targets of that modality, or the number of targets."""


class PackedRow(NamedTuple):
    """One row of a batch; see `Batch` for the fields."""

    tokens: Int[np.ndarray, " S"]
    targets: Int[np.ndarray, " S"]
    segments: Int[np.ndarray, " S"]
    positions: Int[np.ndarray, " S"]
    weights: Float[np.ndarray, " S"]
    counts: Float[np.ndarray, " M"]


def stack(rows: list[PackedRow]) -> Batch:
    """Stacks rows of one length into a batch."""
    return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))
