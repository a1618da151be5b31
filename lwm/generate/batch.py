"""Answers to many prompts at once: rows come and go, so that all slots are busy."""

import dataclasses
import queue
from collections.abc import Iterator, Sequence
from typing import Any

from lwm.errors import UserError, several
from lwm.generate.answer import Answer, FinishReason, Usage
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress
from lwm.sampling_params import SamplingParams
from lwm.tokenizer.message import Message
from lwm.tokenizer.template import render_chat
from lwm.tokenizer.tokenizer import TextStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRequest:
    """A text to continue, or a chat to answer."""

    prompt: str | Sequence[Message]
    """A text, or the turns of a chat, of which the last is a question."""
    params: SamplingParams = SamplingParams()
    n: int = 1
    """Answers; each next one has the next seed."""
    priority: int = 0
    """Requests with a higher one come first."""

    def __post_init__(self):
        """Refuses a number of answers that is none.

        Raises:
            UserError: The number.
        """
        if self.n < 1 or self.params.seed + self.n > 2**32:
            raise UserError(f"n {self.n} must be at least 1, and seed + n at most 2³²")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """Text generated after one prompt."""

    prompt: str
    """Empty for a chat."""
    text: str
    """Without the end-of-text token or stop string that ended it."""
    ids: tuple[int, ...]
    """All generated ids, those of the end of text or of a stop string included."""
    logprobs: tuple[float, ...]
    """Natural logarithm of each id's probability, before all sampling rules."""
    finish_reason: FinishReason
    """`stop`: end of text or stop string; `length`: `max_tokens` were written."""
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
    progress: Progress = lambda done, total: None,
) -> Iterator[Result]:
    """Answers requests together; yields each answer once it is ready, in any order.

    An answer does not depend on the other requests. One that does not fit into the context or
    the memory is an error of its own, and the others go on.

    Args:
        model: The model.
        requests: What to answer.
        progress: Called with the tokens of prompts read and of answers written, and the most
            that these can be; may raise.
    """
    yield from _Batch(model, requests, progress).run()


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
    for job in batch.jobs:
        if job.error is not None:
            number = f"prompt {job.index + 1} of {len(prompts)}"
            raise UserError(f"{number}: {job.error}") from None
    ready: dict[int, Completion] = {}
    following = 0
    for result in batch.run():
        if result.error is not None:
            raise result.error
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
    params: SamplingParams
    priority: int
    ids: list[int] = dataclasses.field(default_factory=list)
    error: UserError | None = None
    answer: Answer | None = None
    pieces: list[Any] = dataclasses.field(default_factory=list)
    read: int = 0

    @property
    def size(self) -> int:
        """Tokens that its row holds at most."""
        return len(self.ids) + self.params.max_tokens

    def result(self, completion: Completion | None = None) -> Result:
        return Result(index=self.index, number=self.number, completion=completion, error=self.error)

    def completion(self) -> Completion:
        assert self.answer is not None
        assert self.answer.finish_reason is not None
        return Completion(
            prompt=self.prompt,
            text="".join(self.pieces),
            ids=tuple(self.answer.ids),
            logprobs=tuple(self.answer.logprobs),
            finish_reason=self.answer.finish_reason,
            usage=self.answer.usage,
        )


class _Batch:
    """Answers that are generated together."""

    def __init__(self, model: LoadedModel, requests: Sequence[TextRequest], progress: Progress):
        self._model, self._progress = model, progress
        self.jobs = [
            job for index, request in enumerate(requests) for job in _jobs(model, index, request)
        ]
        self._lane = model.lane(len(self.jobs))
        self._inbox: queue.SimpleQueue[tuple[Answer, Any]] = queue.SimpleQueue()
        self._open: dict[Answer, _Job] = {}
        self._ended = 0
        self._total = sum(job.size for job in self.jobs if job.error is None)

    def run(self) -> Iterator[Result]:
        """Yields each answer once it is ready."""
        model = self._model
        fit = [job for job in self.jobs if job.error is None]
        together = sorted((job.size for job in fit), reverse=True)[: self._lane]
        model.engine.reserve(sum(together) // model.engine.groups)
        waiting = iter(self.jobs)
        try:
            while True:
                # Some wait in line, so that a slot is never empty for want of a request.
                while len(self._open) < 2 * self._lane and (job := next(waiting, None)):
                    self._send(job)
                    if job.error is not None:
                        yield job.result()
                if not self._open:
                    return
                answer, event = self._inbox.get()
                job = self._open[answer]
                job.pieces += answer.take(event)
                if answer.finish_reason is not None:
                    del self._open[answer]
                    self._ended += job.size
                    yield job.result(job.completion())
                written = sum(len(each.ids) for each in self._open)
                read = sum(each.read for each in self._open.values())
                self._progress(self._ended + read + written, self._total)
        finally:
            for answer in self._open:
                answer.close()

    def _send(self, job: _Job) -> None:
        if job.error is not None:
            return

        def note(done: int, total: int) -> None:
            del total
            job.read = done

        try:
            job.answer = Answer(
                self._model,
                job.ids,
                TextStream(self._model.tokenizer, continues=bool(job.prompt)),
                job.params,
                lane=self._lane,
                progress=note,
                priority=job.priority,
                inbox=self._inbox,
            )
        except UserError as error:
            job.error = error
        else:
            self._open[job.answer] = job


def _jobs(model: LoadedModel, index: int, request: TextRequest) -> Iterator[_Job]:
    """Yields the answers that a request asks for, with the ids of its prompt or the error."""
    ids: list[int] = []
    error = None
    try:
        ids = encode(model, request.prompt)
        model.require_fit(len(ids), request.params.max_tokens)
    except UserError as found:
        error = found
    for number in range(request.n):
        yield _Job(
            index=index,
            number=number,
            prompt=request.prompt if isinstance(request.prompt, str) else "",
            params=dataclasses.replace(request.params, seed=request.params.seed + number),
            priority=request.priority,
            ids=ids,
            error=error,
        )


def encode(model: LoadedModel, prompt: str | Sequence[Message]) -> list[int]:
    """Returns the ids of a text to continue, or of a chat to answer.

    Raises:
        UserError: It is empty, or its frames are not those of the model.
    """
    if isinstance(prompt, str):
        return model.encode_prompt(prompt)
    if not prompt:
        raise UserError("the chat is empty; give at least one message")
    sees = bool(model.llama.config.tokens.vision)
    for message in prompt:
        for vision in message.visions:
            model.require_frames(vision)
    return render_chat(
        prompt,
        model.tokenizer,
        template=model.template,
        marks=model.marks if sees else None,
    )
