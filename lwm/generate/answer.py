"""Answers in text, images and video: one request to the engine, and what it writes."""

import dataclasses
from collections import deque
from collections.abc import AsyncIterator, Collection, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

from lwm.errors import UserError
from lwm.generate.events import Events
from lwm.generate.grammar import FrameLimits
from lwm.generate.loaded import LoadedModel
from lwm.generate.output import AnswerReader, Frame, joined
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.requests import Inbox, Tagged
from lwm.generate.sampling import sampler
from lwm.generate.vision import begun, unprompted
from lwm.generate.work import Finished, FinishReason, Reading, Scores, Work, Written
from lwm.progress import Progress
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.tokenizer.markers import OPENING
from lwm.tokenizer.message import Vision
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

    An iterator, for `async for` too; closing or dropping it ends the answer. The other attributes
    grow with it.
    """

    def __init__(
        self,
        model: LoadedModel,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        continues: bool = False,
        is_turn: bool = False,
        sampling: VisionSampling | None = None,
        frames: int = 0,
        first: Vision | None = None,
        lane: int | None = None,
        progress: Progress = lambda done, total: None,
        priority: int = 0,
        client: Hashable = None,
        salt: bytes = b"",
        scores_from: int | None = None,
        top_logprobs: int = 0,
        inbox: Inbox | None = None,
    ):
        """Sends a request to the model's engine.

        Args:
            model: The model.
            ids: The prompt.
            params: Length, sampling and end of the text.
            continues: The text goes on within that of the prompt, maybe within a word.
            is_turn: The answer is a turn of a chat. It starts without spaces, since formats such
                as LWM's put one before it, unless it continues one; without `sampling` it ends
                before its first image.
            sampling: Sampling of images and videos; None: the answer is text only.
            frames: The answer is the rest of an image or a video that the prompt has begun, of so
                many frames, sampled with guidance if that is asked for; 0: it is text that may
                hold images.
            first: Frames that are given, and count among those; they follow the prompt.
            lane: Width of the lane; None: that of one row.
            progress: Called with the number of prompt tokens in the cache, as the answer is read.
            priority: Requests with a higher one come first.
            client: Clients take turns; None: one of its own.
            salt: What is read of the prompt is shared only between answers with the same, so that
                no client finds out by the time of an answer what another one has asked.
            scores_from: Collects the log-probabilities of the prompt's ids from this index on, at
                least 1; None: of none.
            top_logprobs: Collects so many of the likeliest ids in place of each id of the answer,
                and of the prompt from `scores_from` on; at most 20.
            inbox: Gets pairs of this answer and an event for `take`; for answers that are generated
                together.

        Raises:
            UserError: Prompt and answer do not fit into the context or the devices' memory, or
                the parameters name ids that the model has not.
        """
        _require_ids(model, params)
        opening, given = [], 0
        if first is not None:
            opening, given = begun(model, first), len(first.codes)
            ids = [*ids, *opening]
        most = room(model, len(ids), params)
        self.ids: list[int] = []
        """All ids written, those of the end of text or of a stop string included."""
        self.logprobs: list[float] = []
        """Natural logarithm of each id's probability, before all sampling rules."""
        self.prompt_logprobs: list[float] = []
        """Likewise of the prompt's ids from `scores_from` on."""
        self.prompt_is_likeliest: list[bool] = []
        """True for each of these ids if no other of its modality has a higher probability."""
        self.top_logprobs: list[list[tuple[int, float]]] = []
        """The likeliest ids in place of each id, likewise; empty unless asked for."""
        self.prompt_top_logprobs: list[list[tuple[int, float]]] = []
        """Likewise of the prompt's ids from `scores_from` on."""
        self.finish_reason: FinishReason | None = None
        """Why the answer has ended; None before."""
        self.usage = Usage(prompt_tokens=len(ids), completion_tokens=0)
        self._strips, self._progress = is_turn and not continues, progress
        stops = params.stop
        if is_turn and sampling is None and model.sees:
            stops = (*stops, OPENING)
        eos = model.tokenizer.eos_ids
        ends = {*params.stop_ids, *(() if params.ignore_eos else eos)}
        # The engine knows the reader, and not the answer, so that one may be dropped.
        self._reader = _Reader(
            AnswerReader(
                TextStream(model.tokenizer, continues=continues),
                stops,
                None if sampling is None else model.grammar,
                given=given,
            ),
            {*ends, *eos},
        )
        limits = FrameLimits.exactly(frames, given=given) if frames else FrameLimits()
        plan = GenerationPlan(
            max_tokens=most,
            stop_ids=ends,
            sampler=sampler(params),
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=params.logit_bias,
            min_tokens=params.min_tokens,
            top_logprobs=top_logprobs,
            seed=params.seed,
            vision=None if sampling is None else _vision_plan(model, sampling, most, limits),
        )
        work = Work(plan=plan, read=self._reader, scores_from=scores_from)
        prompts = [ids]
        if frames and sampling is not None and sampling.is_guided:
            prompts.append([*unprompted(model), *opening])
        self._request = work.request(
            *prompts,
            lane=model.lane(1) if lane is None else lane,
            priority=priority,
            client=client,
            salt=salt,
        )
        self._events = Events()
        self._request.events = self._events if inbox is None else Tagged(inbox, self)
        self._pieces: deque[str | Frame] = deque()
        model.engine.submit(self._request)

    def __iter__(self) -> Iterator[str | Frame]:
        """Returns itself."""
        return self

    def __next__(self) -> str | Frame:
        """Waits for the next piece."""
        while not self._pieces:
            if self._is_over:
                raise StopIteration
            self._take_next()
        return self._pieces.popleft()

    def __aiter__(self) -> AsyncIterator[str | Frame]:
        """Returns itself."""
        return self

    async def __anext__(self) -> str | Frame:
        """Waits for the next piece; other tasks go on. A task that is cancelled ends the answer."""
        while not self._pieces:
            if self._is_over:
                raise StopAsyncIteration
            try:
                await self._events.ready()
            except BaseException:
                self.close()
                raise
            self._take_next()
        return self._pieces.popleft()

    def read(self) -> str:
        """Waits for the end of the answer; returns the text that has not been taken yet."""
        return "".join(piece for piece in self if isinstance(piece, str))

    async def aread(self) -> str:
        """Waits for the end of the answer as `read` does; other tasks go on."""
        return "".join([piece async for piece in self if isinstance(piece, str)])

    @property
    def _is_over(self) -> bool:
        return self.finish_reason is not None or self._request.is_cancelled

    def _take_next(self) -> None:
        """Waits for an event, and takes its pieces; one that comes of `close` has none."""
        try:
            event = self._events.get()
            if not (isinstance(event, CancelledError) and self._request.is_cancelled):
                self._pieces += self.take(event)
        except BaseException:
            self.close()
            raise

    def __del__(self):
        """Ends the answer."""
        if hasattr(self, "_request"):
            self.close()

    def close(self) -> None:
        """Ends the answer, if it has not ended; any thread may do so."""
        self._request.is_cancelled = True

    @property
    def size(self) -> int:
        """Tokens of prompt and answer at most; with guidance, also of those without the caption."""
        prompts = self._request.prompts
        return sum(map(len, prompts)) + len(prompts) * self._request.max_tokens

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt that were in the cache so far."""
        return self._request.num_shared

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return None if self.finish_reason is None else self._reader.parts.met

    @property
    def was_cut(self) -> bool:
        """True if the answer ended because it reached its largest length."""
        return self.finish_reason == "length"

    def take(self, event: Any) -> list[str | Frame]:
        """Notes an event of the request, and returns the pieces in it.

        Raises:
            Exception: The event is one.
        """
        pieces: list[str | Frame] = []
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Reading):
            self._progress(event.done, event.total)
        elif isinstance(event, Scores):
            self.prompt_logprobs += event.logprobs
            self.prompt_is_likeliest += event.is_likeliest
            self.prompt_top_logprobs += event.tops
        elif isinstance(event, Finished):
            self.finish_reason = event.reason
            self._count(event.num_cached)
            pieces = self._reader.finish()
        else:
            pieces, written = event
            self.ids += written.ids
            self.logprobs += written.logprobs
            self.top_logprobs += written.tops
            self._count(0)
        return self._stripped(pieces) if self._strips else pieces

    def _stripped(self, pieces: list[str | Frame]) -> list[str | Frame]:
        """Removes spaces before the first piece that is more."""
        while pieces and self._strips:
            first = pieces[0]
            pieces[0] = first.lstrip(" ") if isinstance(first, str) else first
            self._strips = not pieces[0]
            pieces = pieces[self._strips :]
        return pieces

    def _count(self, cached: int) -> None:
        self.usage = dataclasses.replace(
            self.usage, completion_tokens=len(self.ids), cached_tokens=cached
        )


def room(model: LoadedModel, num_ids: int, params: SamplingParams) -> int:
    """Returns the tokens of an answer to a prompt of so many tokens, at most.

    Raises:
        UserError: They do not fit into the context.
    """
    if params.max_tokens is not None:
        model.require_fit(num_ids, params.max_tokens)
        return params.max_tokens
    model.require_fit(num_ids, 1)
    return min(MOST, model.context - num_ids)


def _require_ids(model: LoadedModel, params: SamplingParams) -> None:
    text = model.llama.config.tokens.text
    for name in ("stop_ids", "logit_bias"):
        for token in getattr(params, name):
            if not 0 <= token < text:
                raise UserError(f"{name}: {token} is no text id of {model.name}: 0 to {text - 1}")


class _Reader:
    """Decodes ids as soon as they are written, on the engine's thread."""

    def __init__(self, parts: AnswerReader, ends: Collection[int]):
        self.parts, self._ends = parts, ends

    def __call__(self, written: Written) -> tuple[Any, bool]:
        """Returns the pieces with the ids up to a stop string, and whether there is one."""
        found: list[str | Frame] = []
        count = 0
        for token in written.ids:
            count += 1
            if token not in self._ends:
                found += self.parts.push(token)
            if self.parts.is_stopped:
                break
        kept = Written(written.ids[:count], written.logprobs[:count], written.tops[:count])
        return (list(joined(found)), kept), self.parts.is_stopped

    def finish(self) -> list[str | Frame]:
        """Returns the text that was held back."""
        rest = "" if self.parts.is_stopped else self.parts.finish()
        return [rest] if rest else []


def _vision_plan(
    model: LoadedModel, sampling: VisionSampling, room: int, limits: FrameLimits
) -> VisionPlan:
    image, video = sampling.image, sampling.video
    return VisionPlan(
        state=model.grammar.start([limits], room=room),
        image=sampler(image.params()),
        video=sampler(video.params()),
        guidance=1.0 if image.guidance is None else image.guidance,
        video_guidance=video.guidance,
    )
