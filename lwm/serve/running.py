"""A request to the engine for one or several answers, and their events in an event loop."""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, NamedTuple

from lwm.generate.answer import Answer
from lwm.generate.loaded import LoadedModel
from lwm.generate.output import Frame
from lwm.generate.work import Finished, Reading
from lwm.sampling_params import SamplingParams
from lwm.serve.metrics import Metrics


class Caller(NamedTuple):
    """The sender of a request."""

    client: str | None = None
    """Clients take turns; None: each request is a client of its own."""
    salt: bytes = b""
    """Prompts share what is read only with those of the same salt."""
    priority: int = 0
    """Higher ones come first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """One answer that a request asks for."""

    ids: Sequence[int]
    params: SamplingParams
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Other arguments of `lwm.generate.answer.Answer`."""
    lane: int | None = None
    """Width of the lane; None: that of the server."""
    size: int = 0
    """Tokens of prompt and answer at most."""


class Event(NamedTuple):
    """Progress of an answer."""

    index: int
    """Number of the answer."""
    answer: Answer
    pieces: Sequence[str | Frame]
    reading: Reading | None
    """Progress of the prompt, if the event is one."""


class Times:
    """Times of a request on the clock `time.monotonic`."""

    def __init__(self) -> None:
        """Starts with the arrival."""
        self.arrived = time.monotonic()
        self.first = math.nan
        """First token of an answer."""


class Answers:
    """The answers to one request, which are generated together."""

    def __init__(
        self,
        model: LoadedModel,
        asks: Sequence[Ask],
        caller: Caller,
        *,
        lane: int,
        metrics: Metrics,
        begun: "Callable[[Answers, int], None]",
        worked: Callable[[int], None],
    ):
        """Takes what is asked for; `send` sends it to the engine.

        Args:
            model: The model.
            asks: One for each answer.
            caller: The sender of the request.
            lane: The width of the lane of the answers.
            metrics: Counts of the server.
            begun: Called with these answers, and the size of one of them, once it does not wait.
            worked: Called with a number of tokens that were read or written.
        """
        self._model, self.asks, self.caller = model, asks, caller
        self._lane, self._begun, self._worked = lane, begun, worked
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[tuple[Answer, Any]] = asyncio.Queue()
        self._is_closed = False
        self.answers: list[Answer] = []
        """One for each that is asked for."""
        self.running: dict[Answer, None] = {}
        """Answers that do not wait any more, and have not ended."""
        self._seen: set[Answer] = set()
        self.times = Times()
        metrics.asked(len(asks))
        self._metrics = [metrics.started(len(ask.ids), ask.size - len(ask.ids)) for ask in asks]

    def put(self, tagged: tuple[Answer, Any]) -> None:
        """Takes an event from the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._arrive, *tagged)
        except RuntimeError:  # the loop has ended, with all that waited for events
            tagged[0].close()

    def _arrive(self, answer: Answer, event: Any) -> None:
        """Notes an event when it comes, however slowly the client reads."""
        if answer not in self._seen:
            self._seen.add(answer)
            self.running[answer] = None
            self._begun(self, answer.size)
        if isinstance(event, BaseException | Finished):
            self.running.pop(answer, None)
        self._inbox.put_nowait((answer, event))

    def fail(self, error: Exception) -> None:
        """Ends all answers with an error for the client; any thread may do so."""
        if self.answers and not self._is_closed:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._inbox.put_nowait, (self.answers[0], error))

    def send(self) -> None:
        """Sends all to the engine; runs on a thread, since the check of memory may wait.

        Raises:
            UserError: An answer does not fit.
        """
        caller = self.caller
        try:
            for ask in self.asks:
                self.answers.append(
                    Answer(
                        self._model,
                        ask.ids,
                        ask.params,
                        lane=ask.lane or self._lane,
                        priority=caller.priority,
                        client=caller.client or self,
                        salt=caller.salt,
                        inbox=self,
                        **ask.options,
                    )
                )
                if self._is_closed:  # while it was sent
                    self.close()
                    return
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends all answers."""
        self._is_closed = True
        self.running.clear()
        for answer in self.answers:
            answer.close()
        for noted in self._metrics:
            noted.ends(None)

    async def events(self) -> AsyncGenerator[Event]:
        """Yields events of all answers until the last one has ended."""
        numbers = {answer: number for number, answer in enumerate(self.answers)}
        read = dict.fromkeys(numbers, 0)
        left = len(numbers)
        while left:
            answer, event = await self._inbox.get()
            if isinstance(event, BaseException):
                raise event
            number, written = numbers[answer], len(answer.ids)
            pieces = answer.take(event)
            reading = event if isinstance(event, Reading) else None
            if reading is not None:
                self._metrics[number].reads()
                self._worked(reading.done - read[answer])
                read[answer] = reading.done
            elif len(answer.ids) > written:
                self._metrics[number].writes(len(answer.ids) - written)
                self._worked(len(answer.ids) - written)
                if math.isnan(self.times.first):
                    self.times.first = time.monotonic()
            if answer.finish_reason is not None:
                left -= 1
                self._metrics[number].ends(answer.finish_reason, answer.usage.cached_tokens)
            yield Event(number, answer, pieces, reading)
