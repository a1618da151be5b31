"""Results of a part of a suite, and examples of its wrong answers."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from lwm.eval.ask import Evaluation
from lwm.eval.question import Question
from lwm.eval.results import ResultRow, score_of

EXAMPLES = 6
"""Wrong answers that a report shows of each part."""
_END, _AROUND, _RESPONSE = 400, 160, 600
"""Characters shown of a prompt's end, on each side of a right answer, and of a response."""
_MOST_ANSWERS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartReport:
    """Results of one part as the report of a suite has them."""

    name: str
    """The part's folder."""
    kind: str
    """Name of the part in `SuiteConfig`."""
    report: Mapping[str, Any]
    """The part's own `report.json`: its header, `overall`, `by_length` and `cells`."""
    examples: Sequence[Mapping[str, Any]] = ()
    """Questions with a wrong answer."""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return dataclasses.asdict(self)


def wrong_answers(evaluation: Evaluation, rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Returns examples of questions with less than the full score.

    They are the first of each task, or else of each length, in the order of the cells; prompts
    are built again.
    """
    failed = {evaluation.row_key(row): row for row in rows if score_of(row) < 1}
    chosen: dict[Hashable, tuple[Any, ResultRow]] = {}
    for cell in sorted(evaluation.cells, key=lambda cell: (cell.length, str(evaluation.key(cell)))):
        row = failed.get(evaluation.key(cell))
        if row is not None:
            chosen.setdefault(row.get("task", cell.length), (cell, row))
    some = list(chosen.values())[:EXAMPLES]
    return [_example(evaluation.question(cell), row) for cell, row in some]


def right_answers(row: ResultRow) -> list[str]:
    """Returns the right answers of a result."""
    found = row.get("answers", row.get("answer", []))
    return [found] if isinstance(found, str) else [str(answer) for answer in found]


def _example(question: Question, row: ResultRow) -> dict[str, Any]:
    text, answers = question.message, right_answers(row)
    places = [(answer, text.find(answer)) for answer in answers[:_MOST_ANSWERS]]
    return {
        "context_length": row["context_length"],
        **{name: row[name] for name in ("depth_percent", "task") if name in row},
        "prompt_tokens": row.get("prompt_tokens", len(question.ids)),
        "score": score_of(row),
        "around": [
            {"answer": answer, "text": _cut(text, place - _AROUND, place + len(answer) + _AROUND)}
            for answer, place in places
            if place >= 0
        ],
        "prompt_end": _cut(text + question.opening, len(text + question.opening) - _END, None),
        "response": _cut(row["response"], 0, _RESPONSE),
        "answers": answers,
    }


def _cut(text: str, start: int, end: int | None) -> str:
    """Returns a part of a text, with a mark on each side where more was left out."""
    start, end = max(start, 0), len(text) if end is None else min(end, len(text))
    return f"{'[…] ' * (start > 0)}{text[start:end]}{' […]' * (end < len(text))}"
