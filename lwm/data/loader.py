"""Endless batches of packed rows, the same on every mesh, that go on exactly where they stopped.

Rows come from a fixed number of logical streams, and row i of a batch from stream i modulo that
number. A stream draws its own share of the examples and packs them by itself. Its state is a few
numbers: how far it has drawn, and which examples lie in rows that were not delivered yet.
"""

import dataclasses
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lwm.data.batch import Batch, Row, stack
from lwm.data.example import Example
from lwm.data.pack import Packer, Packing, Piece, Pieces, lay
from lwm.errors import UserError
from lwm.tokens import TokenSpace

State = dict[str, Any]
"""Plain values, which JSON can hold."""

_MOST_MISSES = 1000


@runtime_checkable
class Examples(Protocol):
    """A numbered collection of examples; one that cannot be read raises `UserError`."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Example: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """What is drawn, in which proportion, and how it is spread over streams."""

    weights: tuple[float, ...] = (1.0,)
    """How often each collection is drawn from, up to a common factor."""
    streams: int = 8
    """The number of logical streams. It decides which rows there are, so it stays as it is when
    the mesh or the number of processes changes."""
    seed: int = 0
    shuffle: bool = True
    """Whether each pass over a collection has an order of its own."""

    def __post_init__(self):
        """Refuses proportions that are none.

        Raises:
            UserError: The value.
        """
        if min(self.weights, default=0) < 0 or not 0 < sum(self.weights) < float("inf"):
            raise UserError(f"weights {self.weights} must be 0 or above, and not all 0")
        if self.streams < 1:
            raise UserError(f"{self.streams} streams: there must be at least 1")


class Stream:
    """One endless source of packed rows."""

    def __init__(
        self,
        number: int,
        collections: Sequence[Examples],
        mixture: Mixture,
        packing: Packing,
        tokens: TokenSpace,
    ):
        """Starts at the beginning.

        Raises:
            UserError: The weights do not fit the collections, or one is smaller than the number of
                streams.
        """
        if len(mixture.weights) != len(collections):
            raise UserError(f"{len(mixture.weights)} weights are given for {len(collections)} sets")
        for collection in collections:
            if len(collection) < mixture.streams:
                raise UserError(
                    f"{len(collection)} examples cannot be spread over {mixture.streams} streams; "
                    "give more data or fewer streams"
                )
        self.number = number
        self.collections = collections
        self.mixture = mixture
        self.tokens = tokens
        self.packer = Packer(packing)
        self.drawn = [0] * len(collections)
        """Examples drawn from each collection, by this stream."""
        self.skipped = 0
        """Examples that could not be read."""
        self._ready: list[Pieces] = []
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __next__(self) -> Row:
        """Returns the next row, reading as many examples as it takes.

        Raises:
            UserError: A thousand examples one after the other cannot be read.
        """
        misses = 0
        while not self._ready:
            source = self._draw()
            try:
                example = self._read(source)
            except UserError as error:
                self.skipped, misses = self.skipped + 1, misses + 1
                if misses == _MOST_MISSES:
                    raise UserError(
                        f"{misses} examples one after the other cannot be read, the last: {error}"
                    ) from None
                continue
            misses = 0
            self._ready.extend(self.packer.add(example, source))
        return lay(self._ready.pop(0), self.packer.config, self.tokens)

    def state(self) -> State:
        """Says how to go on from here."""

        def references(rows: list[Pieces]) -> list:
            return [[[*piece.source, piece.start, piece.slots] for piece in row] for row in rows]

        packer = self.packer
        return {
            "drawn": list(self.drawn),
            "skipped": self.skipped,
            "ready": references(self._ready),
            "open": references(packer.rows),
            "packed": [packer.used, packer.finished, packer.dropped],
        }

    def restore(self, state: State) -> None:
        """Goes on from what `state` returned.

        Raises:
            UserError: An example can no longer be read: the data are not the same.
        """

        def rows(references: list) -> list[Pieces]:
            return [[self._reread(*reference) for reference in row] for row in references]

        self.drawn, self.skipped = list(state["drawn"]), state["skipped"]
        self._ready, self.packer.rows = rows(state["ready"]), rows(state["open"])
        self.packer.used, self.packer.finished, self.packer.dropped = state["packed"]

    def _draw(self) -> tuple[int, int]:
        """Chooses the next example: the number of its collection, and its own."""
        weights = np.asarray(self.mixture.weights) / np.sum(self.mixture.weights)
        draw = np.random.default_rng((self.mixture.seed, self.number, sum(self.drawn)))
        collection = int(draw.choice(len(weights), p=weights)) if len(weights) > 1 else 0
        share = len(self.collections[collection]) // self.mixture.streams
        epoch, place = divmod(self.drawn[collection], share)
        self.drawn[collection] += 1
        order = self._order(collection, epoch)
        return collection, int(order[place * self.mixture.streams + self.number])

    def _order(self, collection: int, epoch: int) -> np.ndarray:
        """The order of one pass over a collection, of which all streams take their share."""
        known = self._orders.get(collection)
        if known is None or known[0] != epoch:
            order = np.arange(len(self.collections[collection]))
            if self.mixture.shuffle:
                key = (self.mixture.seed, collection, epoch)
                order = np.random.default_rng(key).permutation(order)
            self._orders[collection] = known = epoch, order
        return known[1]

    def _read(self, source: tuple[int, int]) -> Example:
        collection, record = source
        return self.collections[collection][record]

    def _reread(self, collection: int, record: int, start: int, slots: int) -> Piece:
        example = self._read((collection, record))
        if len(example.ids) - 1 < start + slots:
            raise UserError(
                f"example {record} of data set {collection} is not what it was when the checkpoint "
                "was written; give the same data, or start anew"
            )
        return Piece(example, start, slots, (collection, record))


class Loader:
    """Batches out of streams, prepared ahead in a thread, each with the state after it."""

    def __init__(self, streams: Sequence[Stream], *, rows: int, ahead: int = 2):
        """Delivers `rows` rows at a time, with up to `ahead` batches waiting."""
        self.streams = streams
        self.rows = rows
        self.ahead = ahead
        self._delivered = 0

    def restore(self, state: State) -> None:
        """Goes on after the batch with which `state` was delivered.

        Raises:
            UserError: The number of streams or of rows was another, or the data have changed.
        """
        if len(state["streams"]) != len(self.streams) or state["rows"] != self.rows:
            raise UserError(
                f"the checkpoint was written with {len(state['streams'])} streams and "
                f"{state['rows']} rows a batch, not {len(self.streams)} and {self.rows}"
            )
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.restore(saved)
        self._delivered = state["batches"]

    def __iter__(self) -> Iterator[tuple[Batch, State]]:
        """Yields batches without end; with each, the state that follows it."""
        waiting: queue.Queue = queue.Queue(self.ahead)
        stopped = threading.Event()

        def prepare():
            while not stopped.is_set():
                try:
                    item = self._batch()
                except Exception as error:
                    item = error
                while not stopped.is_set():
                    try:
                        waiting.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if isinstance(item, Exception):
                    return

        threading.Thread(target=prepare, daemon=True).start()
        try:
            while True:
                item = waiting.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stopped.set()

    def _batch(self) -> tuple[Batch, State]:
        first = self._delivered * self.rows
        rows = [next(self.streams[(first + i) % len(self.streams)]) for i in range(self.rows)]
        self._delivered += 1
        state = {
            "rows": self.rows,
            "batches": self._delivered,
            "streams": [stream.state() for stream in self.streams],
        }
        return stack(rows), state
