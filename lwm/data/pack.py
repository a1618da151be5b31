"""Several examples to a row, each as if it were alone.

Examples of a row do not see each other (segments), their positions restart, and each counts as
much as on a row of its own: "masked sequence packing" (Liu et al. 2024, section 4.1).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from lwm import renamed
from lwm.data.example import MODALITIES, Example, PackedRow
from lwm.errors import UserError
from lwm.tokens import TokenSpace

__getattr__ = renamed.look_up(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingConfig:
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
    balance: int = 0
    """Finished rows of a stream that are dealt in an order common to all streams, by what their
    attention costs: devices that work on rows of one batch then seldom wait. 0 for none."""

    def __post_init__(self):
        """Refuses rows that nothing fits on.

        Raises:
            UserError: The value.
        """
        if self.length < 1 or self.open_rows < 1:
            raise UserError(
                f"rows of {self.length} slots, {self.open_rows} open: both must be at least 1"
            )
        if self.balance < 0:
            raise UserError(f"balance over {self.balance} rows: 0 is none, or give how many")


class Placed(NamedTuple):
    """An example, or a part of one that is longer than a row; it fills `slots` slots of a row."""

    example: Example
    start: int
    slots: int
    source: Any = None
    """What the caller knows the example by."""


PlacedRow = list[Placed]
"""What lies on one row, from left to right."""


class Packer:
    """Fills rows with examples, in an order that depends on nothing else."""

    def __init__(self, config: PackingConfig):
        self.config = config
        self.rows: list[PlacedRow] = []
        """Those still open, the oldest first."""
        self._room: list[int] = []
        self.used = 0
        """Slots filled in the rows that were finished."""
        self.finished = 0
        """Rows finished."""
        self.dropped = 0
        """Examples not taken: too long for a row where these are dropped, or without a target."""
        self.split = 0
        """Examples too long for a row, of which several pieces were made."""

    def reopen(self, rows: list[PlacedRow]) -> None:
        """Goes on with rows that are partly filled."""
        self.rows = rows
        self._room = [self.config.length - sum(piece.slots for piece in row) for row in rows]

    def pack(self, examples: Iterable[Example]) -> Iterator[PlacedRow]:
        """Yields rows as they are full; those still open come last."""
        for example in examples:
            yield from self.add(example)
        while self.rows:
            yield self._finish(0)

    def add(self, example: Example, source: Any = None) -> Iterator[PlacedRow]:
        """Takes one more example, and yields the rows that are finished for it."""
        for piece in self._pieces(example, source):
            place = self._place(piece.slots)
            if place is None:
                if len(self.rows) == self.config.open_rows:
                    yield self._finish(self._room.index(min(self._room)))
                self.rows.append([])
                self._room.append(self.config.length)
                place = len(self.rows) - 1
            self.rows[place].append(piece)
            self._room[place] -= piece.slots
            if not self._room[place]:
                yield self._finish(place)

    @property
    def efficiency(self) -> float:
        """The share of slots that hold a token, of all finished rows."""
        return self.used / max(1, self.finished * self.config.length)

    def _pieces(self, example: Example, source: Any) -> PlacedRow:
        # The last token of an example has no target. A piece ends with the target of its last
        # token, with which the next one begins.
        slots, length = len(example.ids) - 1, self.config.length
        if slots < 1 or (slots > length and self.config.long == "drop"):
            self.dropped += 1
            return []
        self.split += slots > length
        starts = range(0, slots, length)
        return [Placed(example, start, min(length, slots - start), source) for start in starts]

    def _place(self, slots: int) -> int | None:
        fits = [place for place, room in enumerate(self._room) if room >= slots]
        if not fits:
            return None
        return fits[0] if self.config.fit == "first" else min(fits, key=self._room.__getitem__)

    def _finish(self, place: int) -> PlacedRow:
        self.finished += 1
        self.used += self.config.length - self._room.pop(place)
        return self.rows.pop(place)


def lay(pieces: Sequence[Placed], config: PackingConfig, tokens: TokenSpace) -> PackedRow:
    """Lays pieces side by side on one row, and fills it up with empty slots."""
    S, sizes = config.length, np.array([piece.slots for piece in pieces], np.int64)
    filled = int(sizes.sum())
    ids, targets, positions = (np.zeros(S, np.int32) for _ in range(3))
    segments, weights = np.full(S, -1, np.int32), np.zeros(S, np.float32)
    counts = np.zeros(len(MODALITIES), np.float32)
    if not pieces:
        return PackedRow(ids, targets, segments, positions, weights, counts)
    learn = np.concatenate([p.example.learn[p.start + 1 : p.start + p.slots + 1] for p in pieces])
    np.concatenate([p.example.ids[p.start : p.start + p.slots] for p in pieces], out=ids[:filled])
    np.concatenate(
        [p.example.ids[p.start + 1 : p.start + p.slots + 1] for p in pieces], out=targets[:filled]
    )
    segments[:filled] = np.repeat(np.arange(len(pieces)), sizes)
    positions[:filled] = np.arange(filled) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_vision = targets[:filled] >= tokens.text
    weights[:filled], counts = _weigh(learn, is_vision, segments[:filled], config)
    return PackedRow(ids, targets, segments, positions, weights, counts)


def _weigh(
    learn: Bool[np.ndarray, " s"],
    is_vision: Bool[np.ndarray, " s"],
    segments: Int[np.ndarray, " s"],
    config: PackingConfig,
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " M"]]:
    """Returns the weight of each target of a row, and what the row adds to the counts."""
    num_pieces, num_kinds = int(segments[-1]) + 1, len(MODALITIES)
    kind = segments * num_kinds + is_vision
    totals = np.bincount(kind[learn], minlength=num_pieces * num_kinds)
    if config.weigh == "token":
        counts = totals.reshape(-1, num_kinds).sum(0)
        return learn.astype(np.float32), counts.astype(np.float32)
    weights = np.where(learn, 1 / np.maximum(totals, 1)[kind], 0)
    return weights.astype(np.float32), np.full(num_kinds, num_pieces, np.float32)
