"""Subject of an evaluation: a model, an endpoint or a program that answers, and its facts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lwm.errors import UserError
from lwm.eval.answer import ModelAnswerer, describe_model, model_fingerprints
from lwm.eval.ask import Evaluation, ask
from lwm.eval.prompt import PromptEncoder
from lwm.eval.question import Answerer
from lwm.eval.results import Results
from lwm.fingerprint import Fingerprints
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress
from lwm.tokenizer.tokenizer import Tokenizer

MakeAnswerer = Callable[[int, Callable[[int], None]], Answerer]
"""Makes an answerer from the tokens that its cache should hold, and from a function that it calls
with the tokens read of the prompts that have no answer yet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """Answers the questions of evaluations; its tokenizer encodes their prompts."""

    description: Mapping[str, Any]
    """Differs between models, for the header of the results; `name` is the model's."""
    files: Fingerprints = dataclasses.field(default_factory=dict)
    """Fingerprints of the model's files, if they are on this machine."""
    tokenizer: Tokenizer
    template: str | None = None
    """A chat template in place of the tokenizer's."""
    context: int | None = None
    """Tokens of prompt and answer together at most, if known."""
    rows: int = 1
    """Prompts that are answered together."""
    answerer: MakeAnswerer
    model: LoadedModel | None = None
    """The model, if it is in this process: some measurements need more than answers."""
    elsewhere: str | None = None
    """The devices that answer, if they are not of this process; for reports."""

    @classmethod
    def of_model(cls, model: LoadedModel, *, rows: int = 1) -> "Subject":
        """Returns a loaded model that answers so many prompts together."""

        def answerer(tokens: int, progress: Callable[[int], None]) -> ModelAnswerer:
            return ModelAnswerer(model, tokens=tokens, rows=rows, progress=progress)

        return cls(
            description=describe_model(model),
            files=model_fingerprints(model),
            tokenizer=model.tokenizer,
            template=model.template,
            context=model.context,
            rows=rows,
            answerer=answerer,
            model=model,
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.description["name"]

    @property
    def encoder(self) -> PromptEncoder:
        """Turns messages into prompts; those with images, if a model is here that reads them."""
        marks = self.model.marks if self.model is not None and self.model.sees else None
        return PromptEncoder(tokenizer=self.tokenizer, template=self.template, marks=marks)

    def require_context(self, length: int, *, remedy: str = "lower lengths") -> None:
        """Refuses a length above the context.

        Raises:
            UserError: The length is above the context.
        """
        require_context(length, self.context, self.name, remedy=remedy)


def require_context(
    length: int, context: int | None, name: str, *, remedy: str = "lower lengths"
) -> None:
    """Refuses a length above a context, if that is known.

    Raises:
        UserError: The length is above the context.
    """
    if context is not None and length > context:
        raise UserError(
            f"length {length:,} is above the context of {name}, {context:,} tokens; {remedy}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Counts of what a call did for an evaluation."""

    num_new: int
    """Answers of this call; the others were in the folder already."""
    prompt_tokens: int
    """Tokens of the prompts of this call."""
    tokens_read: int | None
    """Tokens of these prompts that were computed, the others were shared; None if not known."""


def ask_subject(
    evaluation: Evaluation,
    subject: Subject,
    results: Results,
    *,
    progress: Progress = lambda done, total: None,
) -> Work:
    """Asks the subject every question that has no result yet.

    Args:
        evaluation: The questions.
        subject: Answers them.
        results: Where the answers are recorded.
        progress: Called with tokens done and their total, also while a prompt is read; may raise.

    Raises:
        UserError: See `ask`.
        KeyboardInterrupt: `progress` raised it; the message names the answers kept so far.
    """
    cells = evaluation.cells
    lengths = [cell.length for cell in cells]
    before, total, done = len(results.rows), sum(lengths), 0

    def reading(tokens: int) -> None:
        progress(min(done + tokens, total), total)

    def answered(tokens: int, total: int) -> None:
        nonlocal done
        done = tokens
        progress(done, total)

    # Prompts share their starts: room for those that are answered, and to keep some others.
    answerer = subject.answerer(min(total, (subject.rows + 3) * max(lengths)), reading)
    try:
        ask(evaluation, answerer, results, progress=answered)
    except KeyboardInterrupt:
        known = {evaluation.row_key(row) for row in results.rows}
        kept = sum(evaluation.key(cell) in known for cell in cells)
        raise KeyboardInterrupt(
            f"stopped with {kept:,} of {len(cells):,} answers in {results.path}; "
            "run the same command to continue"
        ) from None
    new = results.rows[before:]
    return Work(
        num_new=len(new),
        prompt_tokens=sum(row["prompt_tokens"] for row in new),
        tokens_read=answerer.num_read if isinstance(answerer, ModelAnswerer) else None,
    )
