"""Kept streams: answers that go on when their client goes, for a client that comes back."""

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from lwm.serve.errors import ApiError

MOST_BYTES = 32 << 20
"""Bytes of the events of a stream that are kept, at most."""
MOST_BYTES_IN_ALL = 256 << 20
MOST_STREAMS = 64
"""Kept streams of a client, at most."""
HEADER = "X-Stream-Id"
_NAME = re.compile(r"[A-Za-z0-9_-]{22,64}")
NAMED = {
    "parameters": [
        {
            "name": HEADER,
            "in": "header",
            "description": "A name under which the stream is kept, for a client that comes back.",
            "schema": {"type": "string", "pattern": f"^{_NAME.pattern}$"},
        }
    ]
}
"""The header of requests, as OpenAPI describes it."""
_LOG = logging.getLogger(__name__)

Events = AsyncGenerator[bytes]
Key = tuple[str | None, str]
"""A client and the name that it gave to a stream."""


class Streams:
    """The streams of a server that clients have named; used from its event loop only."""

    def __init__(self, seconds: float):
        """Takes the time for which a stream is kept that nobody reads, or that has ended."""
        self._seconds = seconds
        self._known: dict[Key, Stream] = {}  # the oldest first
        self._size = 0

    def keep(
        self,
        key: Key,
        starting: Coroutine[Any, Any, Any],
        events: Callable[[Any], Events],
    ) -> "Stream | None":
        """Starts a request whose events are kept; returns None if there is no room for them.

        Args:
            key: Its client and name.
            starting: Sends the request to the engine; it is not begun if there is no room.
            events: Returns the events of the request that was sent, and ends it when they end.

        Raises:
            ApiError: The name is malformed or in use.
        """
        client, name = key
        if not _NAME.fullmatch(name):
            raise ApiError(
                f"{HEADER} is malformed; give 22 to 64 characters of A-Z, a-z, 0-9, _ and -",
                param=HEADER,
            )
        if key in self._known:
            raise ApiError(
                f"there is a stream {name} already; give another {HEADER}", status=409, param=HEADER
            )
        own = sum(each == client for each, _ in self._known)
        if own >= MOST_STREAMS and not self._forget_ended(lambda stream: stream.key[0] == client):
            return None
        if not self._has_room():
            return None
        self._known[key] = Stream(self, key, starting, events)
        return self._known[key]

    def find(self, key: Key) -> "Stream":
        """Returns a stream.

        Raises:
            ApiError: Status 404.
        """
        if (found := self._known.get(key)) is None:
            raise ApiError(
                f"there is no stream {key[1][:64]}; it may have ended a while ago, or nobody read "
                "it for too long",
                "not_found_error",
            )
        return found

    def grow(self, stream: "Stream", size: int) -> None:
        """Counts bytes that a stream keeps, and forgets it if they are too many."""
        self._size += size
        if stream.size > MOST_BYTES or not self._has_room():
            self.forget(stream)

    def watch(self, stream: "Stream") -> None:
        """Forgets a stream after a while, if it has ended or nobody reads it."""
        if stream.timer is not None:
            stream.timer.cancel()
            stream.timer = None
        if stream.is_kept and (stream.is_ended or not stream.is_read):
            loop = asyncio.get_running_loop()
            stream.timer = loop.call_later(self._seconds, self.forget, stream)

    def forget(self, stream: "Stream") -> None:
        """Forgets a stream; it goes on for those who read it, and ends if there are none."""
        if self._known.pop(stream.key, None) is not None:
            self._size -= stream.size
            stream.let_go()
            self.watch(stream)

    def _has_room(self) -> bool:
        """Returns whether more may be kept, once ended streams have made room."""
        while self._size > MOST_BYTES_IN_ALL:
            if not self._forget_ended(lambda stream: True):
                return False
        return True

    def _forget_ended(self, where: Callable[["Stream"], bool]) -> bool:
        """Forgets the oldest stream that has ended; returns False if there is none."""
        ended = (stream for stream in self._known.values() if stream.is_ended and where(stream))
        if (oldest := next(ended, None)) is not None:
            self.forget(oldest)
        return oldest is not None


class Stream:
    """An answer whose events are numbered and kept; several clients may read it."""

    timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        owner: Streams,
        key: Key,
        starting: Coroutine[Any, Any, Any],
        events: Callable[[Any], Events],
    ):
        """Starts the request; see `Streams.keep`."""
        self._owner, self.key = owner, key
        self._starting, self._events_of = starting, events
        self._events: deque[bytes] = deque()
        self._dropped = 0
        """Events before these, which are kept no longer."""
        self.size = 0
        """Bytes of the events."""
        self._readers: dict[Reader, None] = {}
        self.is_kept = True
        """False once the stream is forgotten."""
        self.is_ended = False
        self.begun = asyncio.Event()
        """Set once the request is sent, or refused."""
        self.refusal: BaseException | None = None
        """Reason why the request was not sent."""
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._on_end)

    @property
    def is_read(self) -> bool:
        """True if a client reads the stream now."""
        return bool(self._readers)

    @property
    def last(self) -> int:
        """The number of the last event."""
        return self._dropped + len(self._events)

    def attach(self, after: int = 0) -> "Reader":
        """Adds a client, which reads the events after that of a number; it must leave.

        Raises:
            ApiError: There is no event of this number.
        """
        if after > self.last:
            raise ApiError(
                f"Last-Event-ID {after} is beyond the last event, {self.last}; give the id of an "
                "event of this stream",
                param="Last-Event-ID",
            )
        reader = Reader(self, after)
        self._readers[reader] = None
        self._note_readers()
        return reader

    def leave(self, reader: "Reader") -> None:
        """Removes a client, if it is there."""
        if reader not in self._readers:
            return
        del self._readers[reader]
        self._note_readers()
        if not self.is_kept:
            self.let_go()

    def let_go(self) -> None:
        """Keeps only events that some client still has to read; ends if there is no client."""
        self.is_kept = False
        self.trim()
        if not self._readers:
            self._task.cancel()

    async def stop(self) -> None:
        """Ends the answer; returns once it has ended."""
        self._task.cancel()
        await asyncio.wait({self._task})

    def event(self, number: int) -> bytes:
        """Returns an event by its number."""
        return self._events[number - 1 - self._dropped]

    async def change(self) -> None:
        """Returns when there are more events, when one was read, or at the end."""
        await self._news.wait()

    def trim(self) -> None:
        """Drops events that all clients have read, if the stream is not kept."""
        if self.is_kept or not self._events:
            return
        read = min((reader.place for reader in self._readers), default=self.last)
        while self._dropped < read:
            self.size -= len(self._events.popleft())
            self._dropped += 1
        self._announce()

    async def _run(self) -> None:
        events = self._events_of(await self._starting)
        self.begun.set()
        async with contextlib.aclosing(events):
            async for part in events:
                self._take(part)
                # Of a stream that is not kept, the slowest client sets the pace.
                while not self.is_kept and self.size > MOST_BYTES:
                    await self.change()

    def _take(self, part: bytes) -> None:
        """Adds events."""
        before = self.size
        for each in part.split(b"\n\n"):
            if each:
                numbered = b"id: %d\n%b\n\n" % (self.last + 1, each)
                self._events.append(numbered)
                self.size += len(numbered)
        if self.is_kept:
            self._owner.grow(self, self.size - before)
        self._announce()

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _note_readers(self) -> None:
        if not self.is_ended:  # the time of one that has ended counts from its end
            self._owner.watch(self)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._starting.close()  # else a warning, if it has not begun
        error = None if task.cancelled() else task.exception()
        self.is_ended = True
        if error is not None and self.begun.is_set():
            _LOG.error("a kept stream has failed", exc_info=error)
        elif error is not None:
            self.refusal = error
            self._owner.forget(self)
        self.begun.set()
        self._announce()
        self._owner.watch(self)


class Reader:
    """A client that reads a stream."""

    def __init__(self, stream: Stream, after: int):
        """Starts after the event of a number."""
        self._stream = stream
        self.place = after
        """The number of the last event that was read."""

    async def begun(self) -> None:
        """Returns once the request is sent.

        Raises:
            Exception: It is refused.
        """
        await self._stream.begun.wait()
        if self._stream.refusal is not None:
            raise self._stream.refusal

    async def events(self) -> Events:
        """Yields events to the end of the stream."""
        stream = self._stream
        while True:
            while self.place < stream.last:
                self.place += 1
                event = stream.event(self.place)
                stream.trim()
                yield event
            if stream.is_ended:
                return
            await stream.change()

    def leave(self) -> None:
        """Ends reading."""
        self._stream.leave(self)
