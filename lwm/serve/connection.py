"""HTTP connections with limits on the time of clients that send or read nothing."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lwm.serve.config import ServeConfig


class Connection(H11Protocol):
    """A connection that a client can only hold while it sends or reads.

    One that sends nothing, or the head of a request byte by byte, would hold it; so would one
    that reads nothing of its answer, even after the answer has been closed.
    """

    read_seconds: float
    """Seconds for the head of a request."""
    write_seconds: float
    """Seconds for which nothing of an answer may be read."""
    deadline: asyncio.TimerHandle | None = None
    stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # anything that waits is a pause
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Takes a part of a request."""
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """Begins to wait for the client to read."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """Goes on, since the client has read."""
        super().resume_writing()
        self._end_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all waiting."""
        self._end_watch()
        self._end_wait()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._end_watch()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(self.read_seconds, self.transport.close)

    def _end_watch(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _await_reader(self, before: int | None = None) -> None:
        left = self.transport.get_write_buffer_size()
        if before is not None and left >= before:
            self.transport.abort()  # to close it would wait for the reader
        else:
            self.stalled = self.loop.call_later(self.write_seconds, self._await_reader, left)

    def _end_wait(self) -> None:
        if self.stalled is not None:
            self.stalled.cancel()
            self.stalled = None


def limited(config: ServeConfig) -> type[Connection]:
    """Returns the connections of a server."""

    class Limited(Connection):
        read_seconds, write_seconds = config.read_seconds, config.write_seconds

    return Limited
