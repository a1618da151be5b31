"""Batches out of logical streams, the same on every mesh, that go on exactly where they stopped.

The rows of all batches, one after the other, come from the streams in turn. A process lays out the
rows that its devices hold, and runs no other streams than those that such rows come from.
"""

import math
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from lwm.data.example import stack
from lwm.data.pack import PackingConfig, lay
from lwm.data.stream import Examples, Mixture, PackedStream, StreamState
from lwm.errors import UserError, require_share
from lwm.tokens import TokenSpace

_FEW_READ = 1000
"""A share of bad examples is judged as if at least so many had been read."""


class Delivered(NamedTuple):
    """A batch, and what belongs to it."""

    batch: Any
    """What is learnt: a `Batch` of tokens, or frames."""
    examples: list[list[str]]
    """The names of the examples on each row."""
    faults: list[str]
    """Why examples were passed over since the batch before."""
    read: dict[str, int]
    """Examples that this process has read so far, and of these those that are bad, were dropped,
    and were split."""
    state: Callable[[], StreamState]
    """Says how to go on after it."""


class Loader:
    """Endless batches, prepared ahead in a thread, each with the state after it."""

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
            collections: What is read.
            tokens: What the ids mean.
            packing: How rows are filled.
            mixture: How often each collection is read; by default there is one.
            rows: Rows of a batch, those of all processes together.
            own: Those of them that this process holds; all by default.
            max_bad_share: More examples than this should not be bad; see `require_few_bad`.
            ahead: Batches prepared ahead.
            threads: How many read for each stream; they change nothing about the batches.

        Raises:
            UserError: The collections do not fit the mixture, or a number is out of its range.
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
        # Row i of a batch comes from the streams that leave the same rest.
        self._num_streams = mixture.streams
        rest = math.gcd(rows, mixture.streams)
        ours = {row % rest for row in self.own}
        self.streams = {
            number: PackedStream(number, collections, mixture, packing, threads=threads)
            for number in range(mixture.streams)
            if number % rest in ours
        }

    def restore(self, state: StreamState) -> None:
        """Goes on after the batch with which `state` was delivered.

        Args:
            state: That of all processes, see `merge`.

        Raises:
            UserError: The number of streams or of rows was another, or the data have changed.
        """
        if len(state["streams"]) != self._num_streams or state["rows"] != self.rows:
            raise UserError(
                f"the checkpoint was written with {len(state['streams'])} streams and "
                f"{state['rows']} rows a batch, not {self._num_streams} and {self.rows}"
            )
        if state["sizes"] != self._sizes:
            raise UserError(
                f"the data sets hold {self._sizes} examples, and held {state['sizes']} when the "
                "checkpoint was written; give the same data, or start anew"
            )
        for number, stream in self.streams.items():
            stream.restore(state["streams"][str(number)])
        self._delivered = state["batches"]

    @staticmethod
    def merge(states: Sequence[StreamState]) -> StreamState:
        """Returns the state of all processes out of the state of each."""
        whole = dict(states[0])
        whole["streams"] = {}
        for state in states:
            whole["streams"] |= state["streams"]
        return whole

    def __iter__(self) -> Generator[Delivered]:
        """Yields batches without end.

        Raises:
            UserError: Nothing can be read any more.
        """
        waiting: queue.Queue = queue.Queue(self._ahead)
        stopped = threading.Event()

        def prepare():
            while not stopped.is_set():
                try:
                    item = self._batch()
                except BaseException as error:  # a library may panic with what is no Exception
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
            thread.join()  # What it reads with may not outlive the interpreter.

    def _batch(self) -> Delivered:
        first = self._delivered * self.rows
        laid, names, own = [], [], set(self.own)
        for row in range(self.rows):
            stream = self.streams.get((first + row) % self._num_streams)
            if stream is None:
                continue
            pieces = next(stream)  # Another process may lay it out.
            if row in own:
                laid.append(lay(pieces, self._packing, self._tokens))
                names.append([piece.example.name for piece in pieces])
        self._delivered += 1
        faults = []
        for stream in self.streams.values():
            faults += stream.faults
            stream.faults = []
        return Delivered(stack(laid), names, faults, self._read(), self._snapshot())

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
            "dropped": sum(stream.packer.dropped for stream in streams),
            "split": sum(stream.packer.split for stream in streams),
        }


def require_few_bad(read: dict[str, int], share: float) -> None:
    """Ends what learns from data that are not what they should be.

    Args:
        read: How many examples were `read`, and how many of them are `bad`.
        share: More than this may not be.

    Raises:
        UserError: Too many are bad.
    """
    if read["bad"] > share * max(read["read"], _FEW_READ):
        raise UserError(
            f"{read['bad']} of {read['read']} examples are bad, more than {share:.1%}; those "
            "passed over are named above: mend them, or allow more"
        )
