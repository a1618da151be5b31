"""Batches from logical streams: the same on every mesh, and resumed exactly.

The rows of all batches come from the streams in turn. A process fills only the rows of its own
devices, and runs only the streams of these rows.
"""

import math
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from lwm.data.example import stack
from lwm.data.pack import PackingConfig, fill_row
from lwm.data.stream import Examples, Mixture, PackedStream, StreamState
from lwm.errors import UserError, require_share
from lwm.tokens import TokenSpace

COUNTED = ("read", "bad", "dropped", "split", "outside")
"""Counts of examples in `Delivered.read`."""
_FEW_READ = 1000
"""Least number of examples by which a share of bad ones is computed."""


class Delivered(NamedTuple):
    """A batch, its examples, and the state after it."""

    batch: Any
    """A `Batch` of tokens, or frames."""
    examples: list[list[str]]
    """Names of the examples on each row."""
    faults: list[str]
    """Why examples were skipped since the previous batch."""
    read: dict[str, int]
    """Numbers of examples that this process has read so far, and of those that were bad, dropped,
    split, or outside the bounds of their data sets; see `COUNTED`."""
    state: Callable[[], StreamState]
    """Returns the state after this batch, for `Loader.restore`."""


class Loader:
    """Endless batches, prefetched in a thread, each with the state after it."""

    def __init__(
        self,
        collections: Sequence[Examples],
        tokens: TokenSpace,
        packing: PackingConfig,
        mixture: Mixture | None = None,
        *,
        rows: int,
        own: Sequence[int] | None = None,
        max_bad_share: float = 1.0,
        ahead: int = 2,
        threads: int = 0,
    ):
        """Starts at the beginning.

        Args:
            mixture: Weights of the collections, and streams; by default for one collection.
            rows: Rows of a batch, over all processes.
            own: The rows that this process holds; all by default.
            max_bad_share: Largest share of bad examples; see `require_few_bad`.
            ahead: Batches prepared ahead.
            threads: Reading threads of each stream; the batches do not depend on them.

        Raises:
            UserError: The collections do not fit the mixture, or a number is out of range.
        """
        mixture = mixture or Mixture()
        if rows < 1:
            raise UserError(f"{rows} rows a batch: there must be at least 1")
        require_share("max_bad_share", max_bad_share)
        self.max_bad_share = max_bad_share
        self.rows = rows
        self.own = list(range(rows)) if own is None else sorted(own)
        self._tokens, self._packing = tokens, packing
        self._ahead = ahead
        self._sizes = [len(collection) for collection in collections]
        self._delivered = 0
        # Row i of a batch comes from the streams congruent to i modulo the gcd.
        self._num_streams = mixture.streams
        step = math.gcd(rows, mixture.streams)
        ours = {row % step for row in self.own}
        self.streams = {
            number: PackedStream(number, collections, mixture, packing, threads=threads)
            for number in range(mixture.streams)
            if number % step in ours
        }

    def restore(self, state: StreamState) -> None:
        """Continues after the batch with which `state`, merged of all processes, was delivered.

        Raises:
            UserError: The number of streams or rows differs, or the data have changed.
        """
        if len(state["streams"]) != self._num_streams or state["rows"] != self.rows:
            raise UserError(
                f"the checkpoint was written with {len(state['streams'])} streams and "
                f"{state['rows']} rows a batch, not {self._num_streams} and {self.rows}"
            )
        if state["sizes"] != self._sizes:
            raise UserError(
                f"the data sets hold {self._sizes} examples, and held {state['sizes']} when the "
                "checkpoint was written; give the same data, or start a new run"
            )
        for number, stream in self.streams.items():
            stream.restore(state["streams"][str(number)])
        self._delivered = state["batches"]

    @staticmethod
    def merge(states: Sequence[StreamState]) -> StreamState:
        """Merges the states of the processes into one."""
        whole = dict(states[0])
        whole["streams"] = {}
        for state in states:
            whole["streams"] |= state["streams"]
        return whole

    def __iter__(self) -> Generator[Delivered]:
        """Yields batches without end.

        Raises:
            UserError: No more examples can be read.
        """
        waiting: queue.Queue = queue.Queue(self._ahead)
        stopped = threading.Event()

        def prepare():
            while not stopped.is_set():
                try:
                    item = self._batch()
                except BaseException as error:  # some libraries raise other than Exception
                    item = error
                while not stopped.is_set():
                    try:
                        waiting.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if isinstance(item, BaseException):
                    return

        thread = threading.Thread(target=prepare, daemon=True)
        thread.start()
        try:
            while True:
                item = waiting.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()  # Its readers must not outlive the interpreter.

    def _batch(self) -> Delivered:
        first = self._delivered * self.rows
        filled, names, own = [], [], set(self.own)
        for row in range(self.rows):
            stream = self.streams.get((first + row) % self._num_streams)
            if stream is None:
                continue
            pieces = next(stream)  # advances, even if another process fills this row
            if row in own:
                filled.append(fill_row(pieces, self._packing, self._tokens))
                names.append([piece.example.name for piece in pieces])
        self._delivered += 1
        faults = []
        for stream in self.streams.values():
            faults += stream.faults
            stream.faults = []
        return Delivered(stack(filled), names, faults, self._read(), self._snapshot())

    def _snapshot(self) -> Callable[[], StreamState]:
        delivered = self._delivered
        streams = {str(number): stream.snapshot() for number, stream in self.streams.items()}

        def state() -> StreamState:
            return {
                "rows": self.rows,
                "sizes": self._sizes,
                "batches": delivered,
                "streams": {number: stream() for number, stream in streams.items()},
            }

        return state

    def _read(self) -> dict[str, int]:
        streams = self.streams.values()
        return {
            "read": sum(stream.read for stream in streams),
            "bad": sum(stream.skipped for stream in streams),
            "dropped": sum(stream.dropped for stream in streams),
            "split": sum(stream.split for stream in streams),
            "outside": sum(stream.outside for stream in streams),
        }


def require_few_bad(read: dict[str, int], share: float) -> None:
    """Refuses data if more than a share of the examples that were `read` are `bad`.

    Raises:
        UserError: More are bad.
    """
    if read["bad"] > share * max(read["read"], _FEW_READ):
        raise UserError(
            f"{read['bad']} of {read['read']} examples are bad, more than {share:.1%}; those "
            "skipped are named above: correct them, or allow more"
        )
