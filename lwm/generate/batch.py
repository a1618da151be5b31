"""Continues many texts in one batch."""

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lwm.errors import UserError, several
from lwm.generate.engine import Session, chunks
from lwm.generate.loaded import LoadedModel
from lwm.generate.plan import GenerationPlan
from lwm.generate.sampling import sampler
from lwm.generate.stopping import StoppingText
from lwm.progress import Progress
from lwm.sampling_params import SamplingParams
from lwm.tokenizer.tokenizer import TextStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """Text generated after one prompt."""

    prompt: str
    text: str
    """Without the end-of-text token or stop string that ended it."""
    ids: tuple[int, ...]
    """All generated ids, those of the end of text or of a stop string included."""
    logprobs: tuple[float, ...]
    """Natural logarithm of each id's probability, before all sampling rules."""
    finish_reason: str
    """`stop`: end of text or stop string; `length`: `max_tokens` were written."""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return dataclasses.asdict(self)


def complete(
    model: LoadedModel,
    prompts: Sequence[str],
    params: SamplingParams = SamplingParams(),
    *,
    progress: Progress = lambda done, total: None,
) -> list[Completion]:
    """Continues prompts of any lengths in one batch; a text does not depend on the other prompts.

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
        UserError: A prompt is empty, a prompt and its text do not fit into the context, or the
            batch does not fit into the devices' memory; nothing is read then.
    """
    prompts = several(prompts)
    if not prompts:
        return
    runs = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            runs.append(model.encode_prompt(prompt))
            model.require_fit(len(runs[-1]), params.max_tokens)
        except UserError as error:
            raise UserError(f"prompt {number} of {len(prompts)}: {error}") from None
    slots = sum(chunks(max(map(len, runs)))) + params.max_tokens
    model.require_memory(slots, rows=len(runs))
    session = Session(model.llama, model.mesh, rows=len(runs), slots=slots)
    session.read(runs, progress=progress)
    rows = [_Row(model, prompt, params) for prompt in prompts]
    waiting = deque(rows)
    plan = GenerationPlan(
        max_tokens=params.max_tokens,
        stop_ids=model.tokenizer.eos_ids,
        sampler=sampler(params),
        seed=params.seed,
    )
    for burst in session.generate(plan):
        for number, row in enumerate(rows):
            row.take(burst.ids[number], burst.logprobs[number])
            session.done[number] |= row.is_done
        while waiting and waiting[0].is_done:
            yield waiting.popleft().completion()
    for row in waiting:
        yield row.completion()


class _Row:
    """The state of one row."""

    def __init__(self, model: LoadedModel, prompt: str, params: SamplingParams):
        self._prompt = prompt
        self._ends = model.tokenizer.eos_ids
        self._text = StoppingText(TextStream(model.tokenizer, continues=True), params.stop)
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self.is_done = False

    def take(self, ids: np.ndarray, logprobs: np.ndarray) -> None:
        """Adds the ids of a burst, up to the end of the row."""
        for token, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True):
            if self.is_done or token < 0:
                return
            self._ids.append(token)
            self._logprobs.append(logprob)
            if token in self._ends:
                self.is_done = True
            else:
                self._pieces.append(self._text.push(token))
                self.is_done = self._text.is_stopped

    def completion(self) -> Completion:
        """Returns the finished text."""
        return Completion(
            prompt=self._prompt,
            text="".join([*self._pieces, self._text.finish()]),
            ids=tuple(self._ids),
            logprobs=tuple(self._logprobs),
            finish_reason="stop" if self.is_done else "length",
        )
