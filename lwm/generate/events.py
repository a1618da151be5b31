"""Events of one request, for a thread or a task that waits for them."""

import asyncio
import contextlib
import queue
from typing import Any


class Events:
    """A queue of events."""

    def __init__(self):
        """Starts empty."""
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def put(self, event: Any) -> None:
        """Adds an event; any thread may do so."""
        self._queue.put(event)
        if (waiting := self._waiting) is not None:
            loop, is_ready = waiting
            with contextlib.suppress(RuntimeError):  # the loop has ended, and its tasks with it
                loop.call_soon_threadsafe(is_ready.set)

    def get(self) -> Any:
        """Waits for the next event on this thread."""
        return self._queue.get()

    async def ready(self) -> None:
        """Waits in this task until there is an event."""
        is_ready = asyncio.Event()
        self._waiting = asyncio.get_running_loop(), is_ready
        try:
            # An event that was added before `_waiting` was set has woken nobody.
            while self._queue.empty():
                await is_ready.wait()
                is_ready.clear()
        finally:
            self._waiting = None
