"""Questions of RULER as an evaluation: cells, prompts that fill their context, and scores."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

from lwm.errors import UserError
from lwm.eval.needle.haystack import Haystack
from lwm.eval.prompt import PromptEncoder
from lwm.eval.question import Question, Response
from lwm.eval.results import ResultRow
from lwm.eval.ruler.config import TASKS, RulerConfig, TaskName
from lwm.eval.ruler.essay import Essay
from lwm.eval.ruler.needles import NEEDLE_TASKS, EssaySample, LineSample
from lwm.eval.ruler.questions import Questions, generated, of_file, read_hotpotqa, read_squad
from lwm.eval.ruler.sample import NoRoomError, Sample, fit, random_of
from lwm.eval.ruler.variables import VariableSample, example_units
from lwm.eval.ruler.words import CommonWords, FrequentWords
from lwm.tokenizer.tokenizer import Tokenizer

RETRIEVAL, TRACING, AGGREGATION, ANSWERING = CATEGORIES = (
    "retrieval",
    "multi-hop tracing",
    "aggregation",
    "question answering",
)


class Rules(NamedTuple):
    """Category of a task, and room for its answer in tokens."""

    category: str
    max_tokens: int


RULES: dict[str, Rules] = {
    **dict.fromkeys(NEEDLE_TASKS, Rules(RETRIEVAL, 128)),
    "vt": Rules(TRACING, 30),
    "cwe": Rules(AGGREGATION, 120),
    "fwe": Rules(AGGREGATION, 50),
    "qa_1": Rules(ANSWERING, 32),
    "qa_2": Rules(ANSWERING, 32),
}
# Tasks whose prompts start alike are asked one after another.
_ORDER = (
    "niah_single_1",
    "niah_single_2",
    "niah_multikey_1",
    "niah_single_3",
    "niah_multivalue",
    "niah_multiquery",
)
_ALIKE = {"niah_multikey_1": "niah_single_2", "niah_multiquery": "niah_multivalue"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A sample of a task at a length."""

    task: TaskName
    length: int
    sample: int


class Ruler:
    """The questions of a configuration; see `lwm.eval.ask.Evaluation`."""

    def __init__(self, config: RulerConfig, tokenizer: Tokenizer, *, template: str | None = None):
        """Reads haystack and questions.

        Raises:
            UserError: A file cannot be read, a length has no room for a task, or a file has fewer
                questions than samples.
        """
        self._config, self._tokenizer = config, tokenizer
        self._encode = PromptEncoder(tokenizer=tokenizer, form=config.prompt, template=template)
        self.essay = Essay.open(config.haystack)
        """Text of the needle tasks."""
        self.files = question_files(config)
        """Questions of files, by task."""
        for task, file in self.files.items():
            if task in config.tasks and len(file.items) < config.samples:
                raise UserError(
                    f"{file.name} has {len(file.items):,} questions, fewer than {config.samples:,} "
                    "samples; lower samples"
                )
        pairs = [(task, length) for task in config.all_tasks for length in config.all_lengths]
        for task, length in pairs:
            self._require_room(Cell(task=task, length=length, sample=0))
        cells = [
            Cell(task=task, length=length, sample=sample)
            for task, length in pairs
            for sample in range(config.samples)
        ]
        self.cells = sorted(cells, key=self._place)
        """All cells, in an order that shares the longest prefixes."""

    @functools.cached_property
    def _haystack(self) -> Haystack:
        return self.essay.haystack(self._tokenizer, least=max(self._config.all_lengths))

    @functools.cached_property
    def _example_units(self) -> int:
        return example_units(lambda text: self._tokenizer.encode(text, special=False))

    def sample(self, cell: Cell) -> Sample:
        """Returns the sample of a cell."""
        task, length = cell.task, cell.length
        generator = random_of(self._config.seed, task, length, cell.sample)
        if needles := NEEDLE_TASKS.get(task):
            if needles.haystack == "essay":
                return EssaySample(needles, generator, self._haystack)
            return LineSample(needles, generator)
        if task == "vt":
            return VariableSample(generator, example_units=self._example_units)
        if task == "cwe":
            return CommonWords(generator, length=length)
        if task == "fwe":
            return FrequentWords(generator, tokens=self._room(cell) - self._encode.overhead)
        if file := self.files.get(task):
            return of_file(generator, file, cell.sample)
        return generated(generator, hops=1 if task == "qa_1" else 2)

    def key(self, cell: Cell) -> tuple[str, int, int]:
        """Returns task, length and sample."""
        return cell.task, cell.length, cell.sample

    def row_key(self, row: ResultRow) -> tuple[str, int, int]:
        """Returns the key of the cell that a result belongs to."""
        return row["task"], row["context_length"], row["sample"]

    def question(self, cell: Cell) -> Question:
        """Builds the largest prompt that fits.

        Raises:
            UserError: The length has no room for the task.
        """
        try:
            fitted = fit(self.sample(cell), self._encode, self._room(cell))
        except NoRoomError as error:
            raise self._no_room(cell, error.tokens) from None
        draft = fitted.draft
        return Question(
            cell=cell,
            message=draft.message,
            opening=draft.opening,
            form=self._config.prompt,
            ids=fitted.ids,
            overhead=self._encode.overhead,
            max_tokens=RULES[cell.task].max_tokens,
            truth={"answers": list(draft.answers), "units": fitted.units},
        )

    def row(self, question: Question, response: Response) -> dict[str, Any]:
        """Returns the result of an answer, with its score by RULER's rule."""
        cell, answers = question.cell, question.truth["answers"]
        match = match_any if RULES[cell.task].category == ANSWERING else match_all
        return {
            "task": cell.task,
            "sample": cell.sample,
            "response": response.text,
            "answers": answers,
            "score": match(response.text, answers),
            "units": question.truth["units"],
        }

    def _room(self, cell: Cell) -> int:
        return cell.length - RULES[cell.task].max_tokens

    def _require_room(self, cell: Cell) -> None:
        sample = self.sample(cell)
        draft = sample.draft(sample.least)
        tokens = len(self._encode(draft.message, draft.opening))
        if tokens > self._room(cell):
            raise self._no_room(cell, tokens)

    def _no_room(self, cell: Cell, tokens: int) -> UserError:
        return UserError(
            f"length {cell.length:,} has no room for {cell.task}: the smallest prompt has "
            f"{tokens:,} tokens and the answer {RULES[cell.task].max_tokens}; raise lengths or "
            "leave the task out"
        )

    def _place(self, cell: Cell) -> tuple[int, float, int, int, int]:
        """Returns a cell's place in the order: the longest shared haystack first."""
        task = TASKS.index(cell.task)
        if cell.task not in _ORDER:
            return len(_ORDER) + task, 0.0, cell.length, task, cell.sample
        shared = self.sample(cell).shared * cell.length
        group = _ORDER.index(_ALIKE.get(cell.task, cell.task))
        return group, -shared, -cell.length, task, cell.sample


def question_files(config: RulerConfig) -> dict[str, Questions]:
    """Reads the files of questions that a configuration names, by task.

    Raises:
        UserError: A file cannot be read.
    """
    files = {}
    if config.qa_1 is not None:
        files["qa_1"] = read_squad(config.qa_1)
    if config.qa_2 is not None:
        files["qa_2"] = read_hotpotqa(config.qa_2)
    return files


def match_all(response: str, answers: Iterable[str]) -> float:
    """Returns the share of the answers that a response contains, in any case of letters."""
    found = [answer.lower() in response.lower() for answer in answers]
    return sum(found) / len(found)


def match_any(response: str, answers: Iterable[str]) -> float:
    """Returns 1 if a response contains one of the answers, in any case of letters, else 0."""
    return float(any(answer.lower() in response.lower() for answer in answers))
