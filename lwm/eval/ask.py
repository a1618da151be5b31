"""Asks the questions of an evaluation that have no result yet, and records each answer."""

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

from lwm.errors import UserError
from lwm.eval.question import Answerer, Question, Response
from lwm.eval.results import ResultRow, Results
from lwm.progress import Progress


@runtime_checkable
class Cell(Protocol):
    """A question that is not built yet."""

    @property
    def length(self) -> int:
        """Context length in tokens, prompt and answer included."""
        ...


@runtime_checkable
class Evaluation(Protocol):
    """Questions, and how their answers are recorded."""

    @property
    def cells(self) -> Sequence[Any]:
        """All cells, in an order that shares long prefixes of prompts; see `Cell`."""
        ...

    def key(self, cell: Any) -> Hashable:
        """Returns what distinguishes a cell from the others."""
        ...

    def row_key(self, row: ResultRow) -> Hashable:
        """Returns the key of the cell that a result belongs to."""
        ...

    def question(self, cell: Any) -> Question:
        """Builds the question of a cell; it depends on nothing but the cell."""
        ...

    def row(self, question: Question, response: Response) -> dict[str, Any]:
        """Returns the result of an answer; its `score` is from 0 to 1."""
        ...


def ask(
    evaluation: Evaluation,
    answerer: Answerer,
    results: Results,
    *,
    progress: Progress = lambda done, total: None,
) -> None:
    """Asks every question that has no result yet; each answer is on the disk before the next.

    Args:
        evaluation: The questions.
        answerer: Answers them.
        results: Where the answers are recorded.
        progress: Called after each answer with the tokens of the questions that have one, and of
            all of them; may raise.

    Raises:
        UserError: A question cannot be built, the answerer has failed, or it has read fewer
            tokens than the prompt has.
    """
    known = {evaluation.row_key(row) for row in results.rows}
    left = [cell for cell in evaluation.cells if evaluation.key(cell) not in known]
    total = sum(cell.length for cell in evaluation.cells)
    done = total - sum(cell.length for cell in left)
    progress(done, total)
    for question, response in answerer.answers(map(evaluation.question, left)):
        require_whole(question, response)
        row = evaluation.row(question, response)
        results.append(
            row
            | {
                "context_length": question.cell.length,
                "built_length": question.built_length,
                "prompt_tokens": response.prompt_tokens,
                "prompt_sha256": digest(question),
                "truncated": _missing(question, response),
            }
        )
        done += question.cell.length
        progress(done, total)


def digest(question: Question) -> str:
    """Returns what shows that two models were asked the same."""
    text = question.message + question.opening
    found = hashlib.sha256(text.encode(errors="surrogatepass"))
    for vision in question.visions:
        found.update(repr(vision.codes.shape).encode())
        found.update(vision.codes.astype("<i4").tobytes())
    return found.hexdigest()[:16]


def require_whole(question: Question, response: Response) -> None:
    """Refuses an answer to a prompt of which a part was cut off, or that is too long.

    Raises:
        UserError: The numbers of tokens.
    """
    if question.built_length > question.cell.length:
        raise AssertionError(
            f"a prompt of {question.built_length} tokens was built for {question.cell.length}"
        )
    if _missing(question, response):
        raise UserError(
            f"the server read {response.prompt_tokens:,} tokens of a message of "
            f"{_message_tokens(question):,}: it cuts prompts, or has another tokenizer; raise its "
            "context, or give its model with --tokenizer"
        )


def _missing(question: Question, response: Response) -> int:
    """Returns the tokens of the message that were not read; the template may be the server's."""
    return max(0, _message_tokens(question) - response.prompt_tokens)


def _message_tokens(question: Question) -> int:
    return len(question.ids) - question.overhead
