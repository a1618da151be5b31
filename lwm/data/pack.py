"""Several examples to a row, each as if it were alone.

Examples of a row do not see each other (segments), their positions restart, and each counts as
much as on a row of its own: "masked sequence packing" (Liu et al. 2024, section 4.1).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from lwm.data.batch import MODALITIES, Row
from lwm.data.example import Example
from lwm.errors import UserError
from lwm.tokens import TokenSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """How examples share rows."""

    length: int
    """S: slots of a row."""
    fit: Literal["first", "best"] = "best"
    """The open row that an example goes to: the first with room, or the one with least."""
    open_rows: int = 16
    """Rows that are kept open for examples that fit; more waste less, and delay examples longer."""
    long: Literal["split", "drop"] = "split"
    """What becomes of an example longer than a row: several, or none."""
    weigh: Literal["example", "token"] = "example"
    """Whether examples count alike, whatever their length, or their tokens do."""

    def __post_init__(self):
        """Refuses rows that nothing fits on.

        Raises:
            UserError: The value.
        """
        if self.length < 1 or self.open_rows < 1:
            raise UserError(
                f"rows of {self.length} slots, {self.open_rows} open: both must be at least 1"
            )


class Piece(NamedTuple):
    """An example, or a part of one that is longer than a row; it fills `slots` slots of a row."""

    example: Example
    start: int
    slots: int
    source: Any = None
    """What the caller knows the example by."""


Pieces = list[Piece]
"""What lies on one row, from left to right."""


class Packer:
    """Fills rows with examples, in an order that depends on nothing else."""

    def __init__(self, config: Packing):
        self.config = config
        self.rows: list[Pieces] = []
        """Those still open, the oldest first."""
        self.used = 0
        """Slots filled in the rows that were finished."""
        self.finished = 0
        """Rows finished."""
        self.dropped = 0
        """Examples too long for a row."""

    def pack(self, examples: Iterable[Example]) -> Iterator[Pieces]:
        """Yields rows as they are full; those still open come last."""
        for example in examples:
            yield from self.add(example)
        while self.rows:
            yield self._finish(0)

    def add(self, example: Example, source: Any = None) -> Iterator[Pieces]:
        """Takes one more example, and yields the rows that are finished for it."""
        for piece in self._pieces(example, source):
            place = self._place(piece.slots)
            if place is None:
                if len(self.rows) == self.config.open_rows:
                    yield self._finish(int(np.argmax([_filled(row) for row in self.rows])))
                self.rows.append([])
                place = len(self.rows) - 1
            self.rows[place].append(piece)
            if _filled(self.rows[place]) == self.config.length:
                yield self._finish(place)

    @property
    def efficiency(self) -> float:
        """The share of slots that hold a token, of all finished rows."""
        return self.used / max(1, self.finished * self.config.length)

    def _pieces(self, example: Example, source: Any) -> Pieces:
        # The last token of an example has no target. A piece ends with the target of its last
        # token, with which the next one begins.
        slots, length = len(example.ids) - 1, self.config.length
        if slots > length and self.config.long == "drop":
            self.dropped += 1
            return []
        starts = range(0, slots, length)
        return [Piece(example, start, min(length, slots - start), source) for start in starts]

    def _place(self, slots: int) -> int | None:
        room = np.array([self.config.length - _filled(row) for row in self.rows])
        fits = np.flatnonzero(room >= slots)
        if not fits.size:
            return None
        return int(fits[0] if self.config.fit == "first" else fits[np.argmin(room[fits])])

    def _finish(self, place: int) -> Pieces:
        row = self.rows.pop(place)
        self.finished += 1
        self.used += _filled(row)
        return row


def lay(pieces: Sequence[Piece], config: Packing, tokens: TokenSpace) -> Row:
    """Lays pieces side by side on one row, and fills it up with empty slots."""
    S = config.length
    ids, targets, positions = (np.zeros(S, np.int32) for _ in range(3))
    segments, weights = np.full(S, -1, np.int32), np.zeros(S, np.float32)
    counts = np.zeros(len(MODALITIES), np.float32)
    end = 0
    for number, piece in enumerate(pieces):
        here = slice(end, end + piece.slots)
        inputs = slice(piece.start, piece.start + piece.slots)
        learnt = slice(inputs.start + 1, inputs.stop + 1)
        ids[here], targets[here] = piece.example.ids[inputs], piece.example.ids[learnt]
        segments[here], positions[here] = number, np.arange(piece.slots)
        is_vision = targets[here] >= tokens.text
        weights[here], count = _weigh(piece.example.learn[learnt], is_vision, config)
        counts += count
        end = here.stop
    return Row(ids, targets, segments, positions, weights, counts)


def _weigh(
    learn: np.ndarray, is_vision: np.ndarray, config: Packing
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " M"]]:
    """Returns the weight of each target of a piece, and what the piece adds to the counts."""
    learnt = np.stack([learn & ~is_vision, learn & is_vision]).astype(np.float32)
    totals = learnt.sum(1)
    if config.weigh == "token":
        return learnt.sum(0), totals
    return (learnt / np.maximum(totals, 1)[:, None]).sum(0), np.ones_like(totals)


def _filled(row: Pieces) -> int:
    return sum(piece.slots for piece in row)
