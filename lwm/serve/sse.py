"""Server-sent events: a stream that proxies keep, and that ends when its client goes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


def to_json(value: Any) -> bytes:
    """Returns JSON in UTF-8; lone surrogates, which UTF-8 lacks, become question marks."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="replace")


def event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    """Returns one event of a stream."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + to_json(value) + b"\n\n"


class EventStream(Response):
    """Sends events as they come.

    Between events it sends comments, since proxies close silent connections. It ends, and closes
    the generator of its events, when the client has gone.
    """

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        end: Callable[[], None],
        ping_seconds: float,
    ) -> None:
        """Takes the events.

        Args:
            events: Encoded events.
            end: Called at the end, also if no event was asked for.
            ping_seconds: Time without an event, after which a comment is sent.
        """
        self._events, self._end = events, end
        self._ping = ping_seconds
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all events, unless the client goes before."""
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, sending):
                task.cancel()
            results = await asyncio.gather(gone, sending, return_exceptions=True)
            await self._events.aclose()
            self._end()
        if isinstance(results[1], Exception) and not isinstance(results[1], OSError):
            raise results[1]

    async def _send(self, send: Send) -> None:
        async def write(body: bytes, *, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": body, "more_body": more}
            await send(message)

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        following = None
        try:
            while True:
                following = following or asyncio.ensure_future(anext(self._events, None))
                done, _ = await asyncio.wait({following}, timeout=self._ping)
                if not done:
                    await write(_PING)
                    continue
                part, following = following.result(), None
                if part is None:
                    break
                await write(part)
            await write(b"", more=False)
        finally:
            if following is not None:
                following.cancel()
                with contextlib.suppress(BaseException):
                    await following


async def until_gone(receive: Receive) -> None:
    """Returns once the client has closed the connection; the body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
