"""Evaluations asked as one: a part of their cells, in an order that shares their prompts."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from lwm.eval.ask import Evaluation
from lwm.eval.question import Question, Response
from lwm.eval.results import ResultRow, Results

_PART = "part of the suite"
"""Field of a row that is in memory only."""


class Chosen:
    """Some cells of an evaluation; see `lwm.eval.ask.Evaluation`."""

    def __init__(self, evaluation: Evaluation, is_chosen: Callable[[Any], bool]):
        """Keeps the cells for which `is_chosen` is true, in their order."""
        self._evaluation = evaluation
        self.cells: Sequence[Any] = [cell for cell in evaluation.cells if is_chosen(cell)]
        """The cells that were chosen."""
        self.key = evaluation.key
        self.row_key = evaluation.row_key
        self.question = evaluation.question
        self.row = evaluation.row


class _Cell(NamedTuple):
    part: str
    cell: Any

    @property
    def length(self) -> int:
        return self.cell.length


class Merged:
    """Several evaluations, by name: cells with equal keys are asked one after another."""

    def __init__(self, evaluations: Mapping[str, Evaluation]):
        """Keeps the order of the first evaluation."""
        self._evaluations = evaluations
        together: dict[Hashable, list[_Cell]] = {}
        for part, evaluation in evaluations.items():
            for cell in evaluation.cells:
                together.setdefault(evaluation.key(cell), []).append(_Cell(part, cell))
        self.cells: Sequence[_Cell] = [cell for cells in together.values() for cell in cells]
        """All cells; each knows its evaluation."""

    def key(self, cell: _Cell) -> Hashable:
        """Returns the evaluation's name and the key there."""
        return cell.part, self._evaluations[cell.part].key(cell.cell)

    def row_key(self, row: ResultRow) -> Hashable:
        """Returns the key of the cell that a result of `MergedResults` belongs to."""
        return row[_PART], self._evaluations[row[_PART]].row_key(row)

    def question(self, cell: _Cell) -> Question:
        """Builds the question of a cell."""
        asked = self._evaluations[cell.part].question(cell.cell)
        return dataclasses.replace(asked, cell=cell)

    def row(self, question: Question, response: Response) -> dict[str, Any]:
        """Returns the result of an answer."""
        part, cell = question.cell
        own = dataclasses.replace(question, cell=cell)
        return self._evaluations[part].row(own, response) | {_PART: part}


class MergedResults(Results):
    """Results of several evaluations, each in its own file."""

    def __init__(self, results: Mapping[str, Results]):
        """Takes the results of each evaluation, by name."""
        self._results = results
        first = next(iter(results.values()))
        self.path, self.header = first.path, first.header
        self.rows = [row | {_PART: part} for part, each in results.items() for row in each.rows]

    def append(self, row: ResultRow) -> None:
        """Appends a row to the file of its evaluation."""
        part = row[_PART]
        self._results[part].append({k: v for k, v in row.items() if k != _PART})
        self.rows.append(self._results[part].rows[-1] | {_PART: part})
