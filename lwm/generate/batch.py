"""Answers to many prompts at once: rows come and go, so that all slots are busy."""

import dataclasses
import queue
from array import array
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lwm.errors import UserError, several
from lwm.generate.answer import Answer, Usage, room
from lwm.generate.loaded import LoadedModel
from lwm.generate.pages import PAGE, PAGES_PER_CHUNK, Names
from lwm.generate.work import FinishReason
from lwm.progress import Progress
from lwm.sampling_params import SamplingParams
from lwm.tokenizer.message import Message
from lwm.tokenizer.template import MessageLike, render_chat


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRequest:
    """A text to continue, or a chat to answer."""

    prompt: str | Sequence[MessageLike]
    """A text, or the turns of a chat, of which the last is a question."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Variables of the chat template, such as `tools`."""
    params: SamplingParams = SamplingParams()
    n: int = 1
    """Answers; each next one has the next seed. They share what is read of the prompt."""
    priority: int = 0
    """Requests with a higher one come first."""

    def __post_init__(self):
        """Refuses a number of answers that is out of range.

        Raises:
            UserError: The number.
        """
        if not 1 <= self.n <= 2**32 - self.params.seed:
            raise UserError(f"n {self.n} must be from 1 to {2**32 - self.params.seed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """Text generated after one prompt, or the answer to a chat."""

    prompt: str
    """Empty for a chat."""
    text: str
    """Without the end-of-text token or stop string that ended it."""
    ids: tuple[int, ...] = dataclasses.field(repr=False)
    """All generated ids, those of the end of text or of a stop string included."""
    logprobs: tuple[float, ...] = dataclasses.field(repr=False)
    """Natural logarithm of each id's probability, before all sampling rules."""
    finish_reason: FinishReason
    """`stop`: end of text or stop string; `length`: the largest length was reached."""
    usage: Usage

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """An answer of a batch, or the reason why there is none."""

    index: int
    """The number of the request, from 0."""
    number: int
    """The number of the answer to it, from 0."""
    completion: Completion | None
    error: UserError | None = None


def answers(
    model: LoadedModel,
    requests: Sequence[TextRequest],
    *,
    rows: int = 0,
    progress: Progress = lambda done, total: None,
) -> Iterator[Result]:
    """Answers requests together; yields each answer once it is ready, in any order.

    An answer does not depend on the other requests. One that does not fit into the context or
    the memory is an error of its own, and the others go on.

    Args:
        model: The model.
        requests: What to answer.
        rows: The number of answers of which these are the rest, if others were given before; so
            each is the same to the last bit as if all were asked together.
        progress: Called with the tokens of prompts read and of answers written, and the most
            that these can still become; may raise.
    """
    yield from _Batch(model, requests, progress, rows).run()


def complete(
    model: LoadedModel,
    prompts: Sequence[str],
    params: SamplingParams = SamplingParams(),
    *,
    progress: Progress = lambda done, total: None,
) -> list[Completion]:
    """Continues prompts of any lengths together; a text does not depend on the other prompts.

    The texts are in the order of the prompts.

    Raises:
        UserError: See `completions`.
    """
    return list(completions(model, prompts, params, progress=progress))


def completions(
    model: LoadedModel,
    prompts: Sequence[str],
    params: SamplingParams = SamplingParams(),
    *,
    progress: Progress = lambda done, total: None,
) -> Iterator[Completion]:
    """Continues prompts as `complete` does; yields each text once it and those before it are done.

    Raises:
        UserError: A prompt is empty, or a prompt and its text do not fit into the context or the
            memory; nothing is read then.
    """
    prompts = several(prompts)
    batch = _Batch(model, [TextRequest(prompt=each, params=params) for each in prompts], progress)

    def checked(found: _Job | Result) -> None:
        if found.error is not None:
            place = f"prompt {found.index + 1} of {len(prompts)}: " if len(prompts) > 1 else ""
            raise UserError(f"{place}{found.error}")

    for job in batch.jobs:
        checked(job)
    ready: dict[int, Completion] = {}
    following = 0
    for result in batch.run():
        checked(result)
        assert result.completion is not None
        ready[result.index] = result.completion
        while following in ready:
            yield ready.pop(following)
            following += 1


@dataclasses.dataclass
class _Job:
    """One answer of a batch."""

    index: int
    number: int
    prompt: str
    is_turn: bool
    """The prompt is a chat."""
    params: SamplingParams
    priority: int
    ids: Sequence[int] = ()
    most: int = 0
    """Ids that it writes at most."""
    error: UserError | None = None
    answer: Answer | None = None
    pieces: list[Any] = dataclasses.field(default_factory=list)
    read: int = 0

    @property
    def size(self) -> int:
        """Tokens that its row holds at most."""
        return len(self.ids) + self.most

    @property
    def done(self) -> int:
        """Tokens that its row holds now."""
        return self.read + (0 if self.answer is None else len(self.answer.ids))

    def note(self, done: int, total: int) -> None:
        """Notes the tokens of the prompt that its row holds."""
        self.read = done

    def result(self) -> Result:
        """Returns the answer, or the reason why there is none."""
        completion = None
        if self.error is None:
            assert self.answer is not None
            assert self.answer.finish_reason is not None
            completion = Completion(
                prompt=self.prompt,
                text="".join(self.pieces),
                ids=tuple(self.answer.ids),
                logprobs=tuple(self.answer.logprobs),
                finish_reason=self.answer.finish_reason,
                usage=self.answer.usage,
            )
        return Result(index=self.index, number=self.number, completion=completion, error=self.error)


class _Batch:
    """Answers that are generated together."""

    def __init__(
        self,
        model: LoadedModel,
        requests: Sequence[TextRequest],
        progress: Progress,
        rows: int = 0,
    ):
        self._model, self._progress = model, progress
        self.jobs = [
            job for index, request in enumerate(requests) for job in _jobs(model, index, request)
        ]
        self._lane = model.lane(max(rows, len(self.jobs)))
        self._inbox: queue.SimpleQueue[tuple[Answer, Any]] = queue.SimpleQueue()
        self._open: dict[Answer, _Job] = {}
        self._ended = 0
        self._total = sum(job.size for job in self.jobs if job.error is None)

    def run(self) -> Iterator[Result]:
        """Yields each answer once it is ready."""
        self._reserve()
        waiting = iter(self.jobs)
        try:
            while True:
                # Some wait in line, so that no slot is empty for want of a request.
                while len(self._open) < 2 * self._lane and (job := next(waiting, None)):
                    if job.error is None:
                        self._send(job)
                    if job.error is not None:
                        yield job.result()
                if not self._open:
                    return
                if (ended := self._take(*self._inbox.get())) is not None:
                    yield ended.result()
                self._progress(
                    self._ended + sum(job.done for job in self._open.values()), self._total
                )
        finally:
            for answer in self._open:
                answer.close()

    def _reserve(self) -> None:
        """Asks for pages for the longest rows that may run at once, so that the pool grows once.

        A part of a prompt that several rows share counts once.
        """
        jobs = sorted((job for job in self.jobs if job.error is None), key=lambda job: -job.size)
        shared: set[bytes] = set()
        pages = 0
        for job in jobs[: self._lane]:
            names = set(Names.of(job.ids[:-1], b"").chunks)
            pages += -(-job.size // PAGE) - PAGES_PER_CHUNK * len(names & shared)
            shared |= names
        engine = self._model.engine
        engine.reserve(-(-pages // engine.groups) * PAGE)

    def _send(self, job: _Job) -> None:
        """Sends a request to the engine, or notes why that is not possible."""
        try:
            job.answer = Answer(
                self._model,
                job.ids,
                dataclasses.replace(job.params, max_tokens=job.most),
                continues=not job.is_turn,
                is_turn=job.is_turn,
                lane=self._lane,
                progress=job.note,
                priority=job.priority,
                inbox=self._inbox,
            )
        except UserError as error:
            self._fail(job, error)
        else:
            self._open[job.answer] = job

    def _take(self, answer: Answer, event: Any) -> _Job | None:
        """Takes an event, and returns the answer if it has ended."""
        job = self._open[answer]
        try:
            job.pieces += answer.take(event)
        except UserError as error:
            self._fail(job, error)
        else:
            if answer.finish_reason is None:
                return None
            used = answer.usage.prompt_tokens + answer.usage.completion_tokens
            self._ended += used
            self._total += used - job.size
        del self._open[answer]
        return job

    def _fail(self, job: _Job, error: UserError) -> None:
        job.error = error
        self._total -= job.size


def _jobs(model: LoadedModel, index: int, request: TextRequest) -> Iterator[_Job]:
    """Yields the answers that a request asks for, with the ids of its prompt or the error."""
    ids = array("i")  # of all prompts, while a list takes ten times the memory
    most, error = 0, None
    try:
        ids = array("i", encode(model, request.prompt, request.variables))
        most = room(model, len(ids), request.params)
    except UserError as found:
        error = found
    for number in range(request.n):
        yield _Job(
            index=index,
            number=number,
            prompt=request.prompt if isinstance(request.prompt, str) else "",
            is_turn=not isinstance(request.prompt, str),
            params=dataclasses.replace(request.params, seed=request.params.seed + number),
            priority=request.priority,
            ids=ids,
            most=most,
            error=error,
        )


def encode(
    model: LoadedModel,
    prompt: str | Sequence[MessageLike],
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """Returns the ids of a text to continue, or of a chat to answer.

    Args:
        model: The model.
        prompt: A text, or the turns of a chat.
        variables: Variables of the chat template, such as `tools`.

    Raises:
        UserError: It is empty, the chat does not end with a question, or its frames are not those
            of the model.
    """
    if isinstance(prompt, str):
        return model.encode_prompt(prompt)
    messages = [Message.of(message) for message in prompt]
    if messages and messages[-1].role == "assistant":
        raise UserError("the chat ends with an answer of the assistant; end it with a question")
    for message in messages:
        for vision in message.visions:
            model.require_frames(vision)
    return render_chat(
        messages,
        model.tokenizer,
        template=model.template,
        marks=model.marks if model.sees else None,
        variables=variables,
    )
