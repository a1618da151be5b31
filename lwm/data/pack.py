"""Packing: several examples share a row, with the same loss as on rows of their own.

Examples of a row do not attend to each other (segments), their positions restart, and each has the
weight that it has alone: "masked sequence packing" (Liu et al. 2024, section 4.1).
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
    """Settings of packing."""

    length: int
    """S: slots of a row."""
    fit: Literal["first", "best"] = "best"
    """The open row that an example goes to: the first with room, or the one with the least room."""
    open_rows: int = 16
    """Rows kept open for examples that fit; more waste fewer slots, and delay examples longer."""
    long: Literal["split", "drop"] = "split"
    """Examples longer than a row are split into several, or dropped."""
    weigh: Literal["example", "token"] = "example"
    """Unit of equal weight in the loss: examples, whatever their length, or tokens."""
    balance: int = 0
    """Window of finished rows that each stream sorts by the cost of attention, so that the rows of
    one batch cost about the same and devices seldom wait; 0 turns it off."""

    def __post_init__(self):
        """Refuses sizes out of range.

        Raises:
            UserError: The value.
        """
        if self.length < 1 or self.open_rows < 1:
            raise UserError(
                f"rows of {self.length} slots, {self.open_rows} open: both must be at least 1"
            )
        if self.balance < 0:
            raise UserError(f"balance {self.balance} must be 0 (off) or a number of rows")


class Placed(NamedTuple):
    """An example in a row, or a part of one that is longer than a row."""

    example: Example
    start: int
    slots: int
    source: Any = None
    """The caller's key of the example."""


PlacedRow = list[Placed]
"""The examples of one row, from left to right."""


class Packer:
    """Fills rows with examples; the result depends only on their order."""

    def __init__(self, config: PackingConfig):
        self.config = config
        self.rows: list[PlacedRow] = []
        """Open rows, the oldest first."""
        self._room: list[int] = []
        self.used = 0
        """Filled slots of all finished rows."""
        self.finished = 0
        """Number of finished rows."""
        self.dropped = 0
        """Number of examples left out: without a target, or too long where these are dropped."""
        self.split = 0
        """Number of examples too long for a row that were split."""

    def reopen(self, rows: list[PlacedRow]) -> None:
        """Continues with rows that are partly filled."""
        self.rows = rows
        self._room = [self.config.length - sum(piece.slots for piece in row) for row in rows]

    def pack(self, examples: Iterable[Example]) -> Iterator[PlacedRow]:
        """Yields rows as they fill; open rows come last."""
        for example in examples:
            yield from self.add(example)
        while self.rows:
            yield self._finish(0)

    def add(self, example: Example, source: Any = None) -> Iterator[PlacedRow]:
        """Adds an example, and yields the rows that this finishes."""
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
        """Share of filled slots in all finished rows."""
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


def fill_row(pieces: Sequence[Placed], config: PackingConfig, tokens: TokenSpace) -> PackedRow:
    """Writes pieces side by side into one row; empty slots follow."""
    S, sizes = config.length, np.array([piece.slots for piece in pieces], np.int64)
    filled = int(sizes.sum())
    ids, targets, positions = (np.zeros(S, np.int32) for _ in range(3))
    segments, weights = np.full(S, -1, np.int32), np.zeros(S, np.float32)
    counts = np.zeros(len(MODALITIES), np.float32)
    if not pieces:
        return PackedRow(ids, targets, segments, positions, weights, counts)
    mask = np.concatenate(
        [p.example.loss_mask[p.start + 1 : p.start + p.slots + 1] for p in pieces]
    )
    np.concatenate([p.example.ids[p.start : p.start + p.slots] for p in pieces], out=ids[:filled])
    np.concatenate(
        [p.example.ids[p.start + 1 : p.start + p.slots + 1] for p in pieces], out=targets[:filled]
    )
    segments[:filled] = np.repeat(np.arange(len(pieces)), sizes)
    positions[:filled] = np.arange(filled) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_vision = targets[:filled] >= tokens.text
    weights[:filled], counts = _weigh(mask, is_vision, segments[:filled], config)
    return PackedRow(ids, targets, segments, positions, weights, counts)


def _weigh(
    mask: Bool[np.ndarray, " s"],
    is_vision: Bool[np.ndarray, " s"],
    segments: Int[np.ndarray, " s"],
    config: PackingConfig,
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " M"]]:
    """Returns the weight of each target of a row, and the counts of the row."""
    num_pieces, num_kinds = int(segments[-1]) + 1, len(MODALITIES)
    kind = segments * num_kinds + is_vision
    totals = np.bincount(kind[mask], minlength=num_pieces * num_kinds)
    if config.weigh == "token":
        counts = totals.reshape(-1, num_kinds).sum(0)
        return mask.astype(np.float32), counts.astype(np.float32)
    weights = np.where(mask, 1 / np.maximum(totals, 1)[kind], 0)
    return weights.astype(np.float32), np.full(num_kinds, num_pieces, np.float32)
