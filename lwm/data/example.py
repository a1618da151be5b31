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
    """Ids of the model's one token space, text and vision, and which are learnt as targets."""

    ids: Int[np.ndarray, " n"]
    learn: Bool[np.ndarray, " n"]
    name: str
    """Source and line, for messages."""

    @classmethod
    def join(cls, pieces: Iterable[MaskedIds], *, name: str) -> "Example":
        """Lays pieces end to end."""
        ids, learn = [np.zeros(0, np.int32)], [np.zeros(0, bool)]
        for piece, is_learnt in pieces:
            ids.append(np.asarray(piece, np.int32))
            learn.append(np.full(len(piece), is_learnt))
        return cls(ids=np.concatenate(ids), learn=np.concatenate(learn), name=name)

    def __len__(self) -> int:
        return len(self.ids)


class Batch(NamedTuple):
    """Rows of packed examples, as arrays of NumPy or on a mesh.

    Padding is packing, too: a slot without a token has segment -1 and weight 0.
    """

    tokens: Shaped[Any, "B S"]
    targets: Shaped[Any, "B S"]
    """The id that follows each token in its own example."""
    segments: Shaped[Any, "B S"]
    """Which of its row's examples a slot belongs to, -1 where it is empty."""
    positions: Shaped[Any, "B S"]
    """Places within the example."""
    weights: Shaped[Any, "B S"]
    """How much each target counts; for examples alike, 1 over the learnt targets of its example and
    modality."""
    counts: Shaped[Any, "B M"]
    """What the weighted losses of a modality are divided by, summed over all rows of a step: the
    examples, whether they have targets of that modality or not, or the targets themselves."""


class PackedRow(NamedTuple):
    """One row of a batch; fields as there."""

    tokens: Int[np.ndarray, " S"]
    targets: Int[np.ndarray, " S"]
    segments: Int[np.ndarray, " S"]
    positions: Int[np.ndarray, " S"]
    weights: Float[np.ndarray, " S"]
    counts: Float[np.ndarray, " M"]


def stack(rows: list[PackedRow]) -> Batch:
    """Makes a batch of rows of one length."""
    return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))
