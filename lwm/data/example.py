"""One training example: ids, and which of them are learnt. Free of JAX."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

MaskedIds = tuple[Sequence[int] | np.ndarray, bool]
"""Ids, and whether they are learnt."""


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
