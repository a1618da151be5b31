"""Many texts continued together."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lwm.errors import UserError
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
    """What a model wrote after one prompt."""

    prompt: str
    text: str
    """Up to the end of text or a stop string, neither of which is part of it."""
    ids: tuple[int, ...]
    """All ids that were written, the end of text or those of a stop string included."""
    logprobs: tuple[float, ...]
    """Natural logarithm of each id's probability, before any rule of sampling."""
    finish_reason: str
    """`stop` for an end of text or a stop string, `length` for want of tokens."""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return dataclasses.asdict(self)


def complete(
    model: LoadedModel,
    prompts: Sequence[str],
    writing: SamplingParams = SamplingParams(),
    *,
    progress: Progress = lambda done, total: None,
) -> list[Completion]:
    """Continues prompts of any lengths in one batch; each answer is as if it were alone.

    Raises:
        UserError: A prompt is empty, it and its continuation do not fit into the context, or all
            of them not into the devices' memory; nothing is read then.
    """
    if not prompts:
        return []
    runs = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            runs.append(model.encode_prompt(prompt))
            model.require_fit(len(runs[-1]), writing.max_tokens)
        except UserError as error:
            raise UserError(f"prompt {number} of {len(prompts)}: {error}") from None
    slots = sum(chunks(max(map(len, runs)))) + writing.max_tokens
    model.require_memory(slots, rows=len(runs))
    session = Session(model.llama, model.mesh, rows=len(runs), slots=slots)
    session.read(runs, progress=progress)
    rows = [_Row(model, prompt, writing) for prompt in prompts]
    plan = GenerationPlan(
        max_tokens=writing.max_tokens,
        stop_ids=model.tokenizer.eos_ids,
        sampler=sampler(writing),
        seed=writing.seed,
    )
    for burst in session.generate(plan):
        for number, row in enumerate(rows):
            row.take(burst.ids[number], burst.logprobs[number])
            session.done[number] |= row.is_done
    return [row.completion() for row in rows]


class _Row:
    """One answer on its way."""

    def __init__(self, model: LoadedModel, prompt: str, writing: SamplingParams):
        self._prompt = prompt
        self._ends = model.tokenizer.eos_ids
        self._text = StoppingText(TextStream(model.tokenizer, continues=True), writing.stop)
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self.is_done = False

    def take(self, ids: np.ndarray, logprobs: np.ndarray) -> None:
        """Takes what a burst holds for this row, up to where it ends."""
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
        """Returns the whole answer."""
        return Completion(
            prompt=self._prompt,
            text="".join([*self._pieces, self._text.finish()]),
            ids=tuple(self._ids),
            logprobs=tuple(self._logprobs),
            finish_reason="stop" if self.is_done else "length",
        )
