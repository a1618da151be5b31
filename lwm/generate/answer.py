"""Answers in text, images and video: one request to the engine, and what it writes."""

import dataclasses
import queue
from collections.abc import Generator, Hashable, Iterator, Sequence
from typing import Any

from lwm.generate.grammar import FrameLimits
from lwm.generate.loaded import LoadedModel
from lwm.generate.output import AnswerReader, Frame, joined
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.requests import Request, Tagged
from lwm.generate.sampling import sampler
from lwm.generate.work import Finished, FinishReason, Reading, Scores, Work, Written
from lwm.progress import Progress
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.tokenizer.tokenizer import TextStream

MOST = 4096
"""Ids of an answer at most, where the request names no number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt that did not have to be read, since they were in the cache."""


class Answer:
    """The answer to one prompt, in pieces of text and frames as they are generated.

    An iterator; closing it ends the answer. The other attributes grow with it.
    """

    def __init__(
        self,
        model: LoadedModel,
        ids: Sequence[int],
        stream: TextStream,
        params: SamplingParams,
        *,
        sampling: VisionSampling | None = None,
        lane: int | None = None,
        progress: Progress = lambda done, total: None,
        priority: int = 0,
        client: Hashable = None,
        wants_scores: bool = False,
        inbox: "queue.SimpleQueue[tuple[Answer, Any]] | None" = None,
    ):
        """Sends a request to the model's engine.

        Args:
            model: The model.
            ids: The prompt.
            stream: Decodes ids to text.
            params: Length, sampling and end of the text.
            sampling: Sampling of images and videos; None: the answer is text only.
            lane: Width of the lane; None: that of one row.
            progress: Called with the number of prompt tokens in the cache, as the answer is read.
            priority: Requests with a higher one come first.
            client: Clients take turns; None: one of its own.
            wants_scores: Collects the log-probabilities of the prompt's ids; all of it is read.
            inbox: Gets the events, each with this answer, for `take`; for answers that are
                generated together.

        Raises:
            UserError: Prompt and answer do not fit into the context or the devices' memory.
        """
        model.require_fit(len(ids), params.max_tokens)
        self.ids: list[int] = []
        """All ids written, those of the end of text or of a stop string included."""
        self.logprobs: list[float] = []
        """Natural logarithm of each id's probability, before all sampling rules."""
        self.prompt_logprobs: list[float] = []
        """Likewise of the prompt's ids from the second on, if they were asked for."""
        self.finish_reason: FinishReason | None = None
        """Why the answer has ended; None before."""
        self.usage = Usage(prompt_tokens=len(ids), completion_tokens=0)
        self.stopped_by: str | None = None
        """The stop string that ended the answer, if one did."""
        self._ends = model.tokenizer.eos_ids
        self._parts = AnswerReader(stream, params.stop, None if sampling is None else model.grammar)
        self._progress = progress
        plan = GenerationPlan(
            max_tokens=params.max_tokens,
            stop_ids=self._ends,
            sampler=sampler(params),
            seed=params.seed,
            vision=None if sampling is None else _vision_plan(model, sampling, params.max_tokens),
        )
        self._request = Request(
            tuple(ids),
            max_tokens=params.max_tokens,
            lane=model.lane(1) if lane is None else lane,
            priority=priority,
            client=client,
            reuse=not wants_scores,
            work=Work(plan=plan, read=self._read, wants_scores=wants_scores),
        )
        if inbox is not None:
            self._request.events = Tagged(inbox, self)
        self._pieces = self._run()
        model.engine.submit(self._request)

    def __iter__(self) -> Iterator[str | Frame]:
        """Returns itself."""
        return self

    def __next__(self) -> str | Frame:
        """Waits for the next piece."""
        return next(self._pieces)

    def close(self) -> None:
        """Ends the answer, if it has not ended."""
        self._request.is_cancelled = True
        self._pieces.close()

    @property
    def was_cut(self) -> bool:
        """True if the answer ended because `max_tokens` were written."""
        return self.finish_reason == "length"

    def take(self, event: Any) -> list[str | Frame]:
        """Notes an event of the request, and returns the pieces in it.

        Raises:
            Exception: The event is one.
        """
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Reading):
            self._progress(event.done, event.total)
        elif isinstance(event, Scores):
            self.prompt_logprobs += event.logprobs
        elif isinstance(event, Finished):
            self.finish_reason, self.stopped_by = event.reason, self._parts.met
            self._count(event.num_cached)
            rest = "" if self._parts.is_stopped else self._parts.finish()
            return [rest] if rest else []
        else:
            pieces, written = event
            self.ids += written.ids
            self.logprobs += written.logprobs
            self._count(0)
            return pieces
        return []

    def _run(self) -> Generator[str | Frame]:
        try:
            while self.finish_reason is None:
                yield from self.take(self._request.events.get())
        finally:
            self._request.is_cancelled = True

    def _read(self, written: Written) -> tuple[Any, bool]:
        """Decodes ids as soon as they are written, on the engine's thread."""
        found: list[str | Frame] = []
        count = 0
        for token in written.ids:
            count += 1
            if token not in self._ends:
                found += self._parts.push(token)
            if self._parts.is_stopped:
                break
        kept = Written(written.ids[:count], written.logprobs[:count])
        return (list(joined(found)), kept), self._parts.is_stopped

    def _count(self, cached: int) -> None:
        self.usage = dataclasses.replace(
            self.usage, completion_tokens=len(self.ids), cached_tokens=cached
        )


def _vision_plan(model: LoadedModel, sampling: VisionSampling, room: int) -> VisionPlan:
    return VisionPlan(
        state=model.grammar.start([FrameLimits()], room=room),
        image=sampler(sampling.image.params()),
        video=sampler(sampling.video.params()),
    )
