"""Questions about images and videos as an evaluation: prompts with their codes, and scores."""

import dataclasses
import functools
import hashlib
import heapq
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

import lwm
from lwm.cache import LRUCache
from lwm.errors import UserError
from lwm.eval.prompt import PromptEncoder
from lwm.eval.qa.config import QAConfig
from lwm.eval.qa.rows import QuestionSet, Row
from lwm.eval.qa.rules import score
from lwm.eval.question import Question, Response
from lwm.eval.results import ResultRow
from lwm.eval.subject import Subject
from lwm.generate.loaded import LoadedModel
from lwm.tokenizer.message import Part, Vision

_KEPT_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A question, by its number in the set."""

    number: int
    length: int
    """Tokens of prompt and answer at most; videos may have fewer frames."""


class QAEvaluation:
    """The questions of a set; see `lwm.eval.ask.Evaluation`."""

    def __init__(self, questions: QuestionSet, config: QAConfig, subject: Subject) -> None:
        """Reads the questions, but for images and videos.

        Raises:
            UserError: A row is bad, the model reads no images, or a prompt is too long for it.
        """
        self._set, self._config, self._subject = questions, config, subject
        self._codes = LRUCache(_KEPT_BYTES)
        if not config.blind:
            require_seeing(subject)
        numbers = chosen(len(questions), config.count)
        self.cells: Sequence[Cell] = [
            Cell(number=number, length=self._length(questions.row(number))) for number in numbers
        ]
        """All cells, in the order of the set: questions about an image often follow one another."""
        remedy = "shorten the questions, or lower the frames of videos"
        subject.require_context(max(cell.length for cell in self.cells), remedy=remedy)

    def _length(self, row: Row) -> int:
        seen = None
        if not self._config.blind:
            blank = np.zeros((row.frames, self._model.vision.tokens_per_frame), np.int32)
            seen = Vision(codes=blank, is_video=row.frames > 1)
        return self._built(row, seen, None).built_length

    @property
    def _model(self) -> LoadedModel:
        assert self._subject.model is not None
        return self._subject.model

    def key(self, cell: Cell) -> Hashable:
        """Returns the number of the question."""
        return cell.number

    def row_key(self, row: ResultRow) -> Hashable:
        """Returns the number of the question that a result belongs to."""
        return row["sample"]

    def question(self, cell: Cell) -> Question:
        """Reads the image or video of a question, and builds the prompt.

        Raises:
            UserError: The image or video cannot be read; the row is named.
        """
        row = self._set.row(cell.number)
        return self._built(row, None if self._config.blind else self._seen(row), cell)

    def _built(self, row: Row, seen: Vision | None, cell: Cell | None) -> Question:
        text = "\n".join(filter(None, (row.question, self._config.instruction)))
        parts: tuple[Part, ...] = (text,) if seen is None else (text, seen)
        return self._encode.with_images(
            cell, parts, max_tokens=self._config.max_tokens, truth={"row": row}
        )

    @functools.cached_property
    def _encode(self) -> PromptEncoder:
        return self._subject.encoder

    def _seen(self, row: Row) -> Vision:
        """Returns the codes of an image or video; they are kept for further questions about it."""
        if (known := self._codes.get(row.key)) is not None:
            return known
        seen = self._set.pixels(row, self._model.vision.resolution)
        codes = self._model.encode_frames(seen.pixels)
        vision = Vision(codes=codes, is_video=seen.is_video, name=row.medium)
        self._codes.put(row.key, vision, codes.nbytes)
        return vision

    def row(self, question: Question, response: Response) -> dict[str, Any]:
        """Returns the result of an answer; `task` is the type of the question."""
        row: Row = question.truth["row"]
        return {
            "sample": question.cell.number,
            "task": row.kind,
            **({"group": row.group} if row.group else {}),
            "medium": row.medium,
            "question": row.question,
            "answers": list(row.answers),
            **({"options": len(row.options)} if row.options else {}),
            "response": response.text,
            "score": score(self._set.rule, response.text, row.answers, row.options),
        }

    def header(self) -> dict[str, Any]:
        """Returns what the answers depend on, and apart from it the grid, which may grow."""
        return {
            "evaluation": "qa",
            "model": dict(self._subject.description),
            "config": identity(self._set, self._config),
            "grid": {"questions": len(self.cells)},
            "questions": self._set.identity(),
            "versions": {"lwm": lwm.__version__, "jax": jax.__version__},
            "files": self._subject.files,
        }


def identity(questions: QuestionSet, config: QAConfig) -> dict[str, Any]:
    """Returns what of a configuration decides a prompt and its score."""
    fixed = ("blind", "max_frames", "instruction", "max_tokens")
    return {"rule": questions.rule} | {name: getattr(config, name) for name in fixed}


def require_seeing(subject: Subject) -> None:
    """Refuses models that read no images, and those that are not in this process.

    Raises:
        UserError: The model.
    """
    if subject.model is None:
        raise UserError(
            f"{subject.name} is not in this process, so that it is asked in text only; --blind "
            "asks without the images"
        )
    if not subject.model.sees:
        raise UserError(
            f"{subject.name} reads and writes text only; --blind asks without the images"
        )


def chosen(total: int, count: int | None) -> list[int]:
    """Returns the numbers of some questions, ascending; those of a smaller count are among them."""
    if count is None or count >= total:
        return list(range(total))
    return sorted(heapq.nsmallest(count, range(total), key=_rank))


def _rank(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()
