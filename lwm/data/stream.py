"""Logical streams: endless packed rows, each from its own share of the examples.

Their number is fixed, whatever the mesh and the number of processes. Grain orders the examples of
a stream: shuffled anew in each pass, mixed by weight, read by threads. The stream packs them
itself, so that its state is a few numbers: the position in the order, and the examples in rows
that were not delivered yet.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lwm.data.example import Example
from lwm.data.pack import Packer, PackingConfig, Placed, PlacedRow
from lwm.errors import UserError

StreamState = dict[str, Any]
"""Plain values for JSON."""

_MOST_MISSES = 1000
_GOLDEN = (5**0.5 - 1) / 2
"""The golden ratio, whose multiples are spread evenly between whole numbers."""
_COUNTS = "used", "finished", "dropped", "split"
"""Counts of a packer that checkpoints keep."""


class OutOfBounds(UserError):
    """Raised for an example that is shorter or longer than its data set asks for."""


@runtime_checkable
class Examples(Protocol):
    """A numbered collection of examples; one that cannot be read raises `UserError`."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Example: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Settings: weights of the data sets, streams, and order."""

    weights: tuple[float, ...] = (1.0,)
    """Relative frequency of each collection."""
    groups: tuple[str, ...] = ()
    """Group of each collection: those of different groups never share a row. Empty: all are of one
    group."""
    streams: int = 8
    """Number of logical streams. It determines the rows, so it must stay the same when the mesh or
    the number of processes changes."""
    seed: int = 0
    shuffle: bool = True
    """Shuffle each pass over a collection anew."""

    def __post_init__(self):
        """Refuses values out of range.

        Raises:
            UserError: The value.
        """
        if min(self.weights, default=-1) < 0 or not 0 < sum(self.weights) < float("inf"):
            raise UserError(f"weights {self.weights} must be 0 or above, and not all 0")
        if self.streams < 1:
            raise UserError(f"{self.streams} streams: there must be at least 1")
        if self.groups and len(self.groups) != len(self.weights):
            raise UserError(
                f"{len(self.groups)} groups are given for {len(self.weights)} weights of data sets"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed {self.seed} must be from 0 to 2**32 - 1")


class Sampled(NamedTuple):
    """One sample: an example, or why there is none."""

    source: tuple[int, int]
    """Number of the collection, and of the example in it."""
    example: Example | None
    fault: str = ""
    outside: bool = False
    """True if its length is outside the bounds of its data set; it is not bad."""


class PackedStream:
    """Endless packed rows of one stream."""

    def __init__(
        self,
        number: int,
        collections: Sequence[Examples],
        mixture: Mixture,
        packing: PackingConfig,
        *,
        threads: int = 0,
    ):
        """Starts at the beginning.

        Args:
            number: The number among `mixture.streams`.
            collections: The data sets; `threads` read them at the same time.
            threads: Number of threads that prefetch; they do not change the order.

        Raises:
            UserError: The weights do not fit the collections, or a collection has fewer examples
                than there are streams.
        """
        self.number = number
        self.collections = collections
        self.mixture = mixture
        self._groups = mixture.groups or ("",) * len(collections)
        self._packers = {group: Packer(packing) for group in dict.fromkeys(self._groups)}
        self._balance = max(1, packing.balance)
        self.read = 0
        """Number of examples sampled."""
        self.faults: list[str] = []
        """Why some of them could not be read; the caller that reports them empties this."""
        self.skipped = 0
        """Number of examples that could not be read."""
        self.outside = 0
        """Number of examples whose length is outside the bounds of their data set."""
        self._most_outside = _MOST_MISSES + sum(map(len, collections))
        self._samples = iter(samples(number, collections, mixture, threads=threads))
        self._window: list[PlacedRow] = []
        self._windows = 0
        self._ready: list[PlacedRow] = []

    @property
    def dropped(self) -> int:
        """Number of examples that the packing left out."""
        return sum(packer.dropped for packer in self._packers.values())

    @property
    def split(self) -> int:
        """Number of examples too long for a row that were split."""
        return sum(packer.split for packer in self._packers.values())

    def __next__(self) -> PlacedRow:
        """Returns the next row; reads as many examples as it takes.

        Raises:
            UserError: A thousand examples one after the other cannot be used, or all examples are
                outside the bounds of their data sets.
        """
        misses, outside = 0, 0
        while not self._ready:
            source, example, fault, is_outside = next(self._samples)
            self.read += 1
            if is_outside:
                self.outside, outside = self.outside + 1, outside + 1
                if outside == self._most_outside:
                    raise UserError(
                        f"no example has the least and most tokens asked for; the last: {fault}"
                    )
                continue
            packer = self._packers[self._groups[source[0]]]
            dropped = packer.dropped
            if example is None:
                self.skipped += 1
                self.faults.append(fault)
            else:
                for row in packer.add(example, source):
                    self._finish(row)
                fault = f"{example.name} has {len(example)} tokens: no target, or too long to keep"
            is_used = example is not None and packer.dropped == dropped
            misses, outside = (0, 0) if is_used else (misses + 1, outside)
            if misses == _MOST_MISSES:
                raise UserError(
                    f"{misses} examples one after the other cannot be used, the last: {fault}"
                )
        return self._ready.pop(0)

    def _finish(self, row: PlacedRow) -> None:
        self._window.append(row)
        size = self._balance
        if len(self._window) < size:
            return
        # All streams permute their sorted windows alike: the rows of a batch, which come from
        # different streams, then cost about the same.
        window = sorted(self._window, key=_work)
        order = np.random.default_rng((self.mixture.seed, self._windows)).permutation(size)
        self._ready += [window[place] for place in order]
        self._window, self._windows = [], self._windows + 1

    def snapshot(self) -> Callable[[], StreamState]:
        """Takes a snapshot, and returns a function that builds the state from it.

        Few states are ever built, and with many small examples they are long.
        """
        packers = self._packers.values()
        position = self._samples.get_state()
        counts = {"read": self.read, "skipped": self.skipped, "windows": self._windows}
        counts["outside"] = self.outside
        packed = [sum(getattr(packer, name) for packer in packers) for name in _COUNTS]
        # Finished rows do not change any more.
        rows = {"ready": list(self._ready), "window": list(self._window)}
        rows["open"] = [list(row) for packer in packers for row in packer.rows]

        def references(rows: list[PlacedRow]) -> list:
            return [[[*piece.source, piece.start, piece.slots] for piece in row] for row in rows]

        def state() -> StreamState:
            named = {name: references(given) for name, given in rows.items()}
            return {"drawn": position, "packed": packed, **counts, **named}

        return state

    def restore(self, state: StreamState) -> None:
        """Continues from a state of `snapshot`.

        Raises:
            UserError: An example differs or cannot be read: the data are not the same.
        """
        # Pieces of a long example share one copy.
        known: dict[tuple[int, int], Example] = {}

        def rows(references: list) -> list[PlacedRow]:
            return [[self._reread(known, *reference) for reference in row] for row in references]

        self._samples.set_state(state["drawn"])
        self.read, self.skipped = state["read"], state["skipped"]
        self.outside = state.get("outside", 0)  # runs of earlier versions have none
        self._ready, self._window = rows(state["ready"]), rows(state["window"])
        self._windows = state["windows"]
        opened = rows(state["open"])
        for group, packer in self._packers.items():
            packer.reopen([row for row in opened if self._groups[row[0].source[0]] == group])
        # Only their sums are of interest.
        first, *others = self._packers.values()
        for name, count in zip(_COUNTS, state["packed"], strict=True):
            setattr(first, name, count)
            for packer in others:
                setattr(packer, name, 0)

    def _reread(
        self,
        known: dict[tuple[int, int], Example],
        collection: int,
        record: int,
        start: int,
        slots: int,
    ) -> Placed:
        source = collection, record
        if source not in known:
            with contextlib.suppress(IndexError, UserError):
                known[source] = self.collections[collection][record]
        if source not in known or len(known[source].ids) - 1 < start + slots:
            raise UserError(
                f"example {record} of data set {collection} is not what it was when the checkpoint "
                "was written; give the same data, or start a new run"
            )
        return Placed(known[source], start, slots, source)


def samples(
    number: int, collections: Sequence[Examples], mixture: Mixture, *, threads: int = 0
) -> Any:
    """Returns the `Sampled` of one stream as an endless Grain data set.

    Raises:
        UserError: See `PackedStream`.
    """
    import grain

    if len(mixture.weights) != len(collections):
        raise UserError(f"{len(mixture.weights)} weights are given for {len(collections)} sets")
    parts, weights = [], []
    for place, (collection, weight) in enumerate(zip(collections, mixture.weights, strict=True)):
        if not weight:
            continue
        if len(collection) < mixture.streams:
            raise UserError(
                f"the {len(collection)} examples of data set {place} cannot be spread over "
                f"{mixture.streams} streams; give more data or fewer streams"
            )
        part = grain.MapDataset.source(_Numbered(place, collection))
        if mixture.shuffle:
            key = np.random.SeedSequence((mixture.seed, place)).generate_state(1)
            part = part.shuffle(seed=int(key[0]))
        parts.append(part[number :: mixture.streams].repeat())
        weights.append(weight)
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)
    if start := _first_draw(number, weights):
        mixed = mixed[start:]
    # A few examples ahead of each stream: one may be a million tokens long.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    return mixed.to_iter_dataset(options)


def _first_draw(number: int, weights: Sequence[float]) -> int:
    """Returns the draw of the mixture at which a stream begins.

    The streams are spread over the draws between two of the rarest set. If they began alike, all
    rows of a batch would come from one set at a time.
    """
    return int(number * _GOLDEN % 1 * sum(weights) / min(weights))


@dataclasses.dataclass(frozen=True)
class _Numbered:
    """A collection whose examples know where they come from, and whose faults are values."""

    place: int
    collection: Examples

    def __len__(self) -> int:
        return len(self.collection)

    def __getitem__(self, index: int) -> Sampled:
        source = (self.place, int(index))
        try:
            return Sampled(source, self.collection[source[1]])
        except OutOfBounds as error:
            return Sampled(source, None, str(error), outside=True)
        except UserError as error:
            return Sampled(source, None, str(error))


def _work(row: PlacedRow) -> int:
    """Returns the cost of attention over a row, up to a factor."""
    return sum(piece.slots**2 for piece in row)
