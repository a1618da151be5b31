"""Differences of models on the same questions: with intervals and tests, per part and length."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.eval.results import ResultRow, difference, read_results, score_of
from lwm.eval.statistics import holm, mean_interval, paired_difference

RESULTS = "results.jsonl"
_KEYS = (
    *("task", "context_length", "depth_percent", "seed", "sample", "document", "segment"),
    *("frames", "split"),
)
"""Fields of results that distinguish questions, as far as a part has them."""
_IDENTITY = ("config", "haystack.sha256", "needles.sha256", "questions", "vocabulary", "texts")
"""Fields of headers that decide which questions are asked, whatever the tokenizer."""
PERPLEXITY = "perplexity"
_SHOWN = ("visual-needle", "qa", "adherence")
"""Evaluations about images and videos, which have no grid of lengths."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """Results of one part."""

    path: Path
    header: ResultRow
    rows: Mapping[tuple, ResultRow]
    """Results by what distinguishes their questions."""

    @classmethod
    def read(cls, path: Path) -> "Recorded":
        """Reads the results of a part.

        Raises:
            UserError: They are damaged.
        """
        header, rows = read_results(path)
        if header.get("evaluation") == PERPLEXITY:
            rows = [row for row in rows if row["context"] == header["config"]["length"]]
        if header.get("evaluation") in _SHOWN:
            # The lengths of prompts with images differ between tokenizers.
            rows = [{k: v for k, v in row.items() if k != "context_length"} for row in rows]
        keyed = {tuple(row.get(name) for name in _KEYS): row for row in rows}
        return cls(path=path, header=header, rows=keyed)

    @property
    def part(self) -> str:
        """Name of the part, which does not depend on that of the folder."""
        name, config = self.header["evaluation"], self.header.get("config", {})
        if name == "visual-needle":
            return f"{name}-{config['task']}"
        if name == "qa":
            return f"{config['rule']}-questions{'-blind' * config['blind']}"
        several = name == "needle" and config.get("needles", 1) > 1
        return f"needle-{config['needles']}-{config['ask']}" if several else name

    @property
    def model(self) -> str:
        """The model's name."""
        return self.header["model"]["name"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """Mean scores of two models on the same questions, and their difference."""

    length: int | None = None
    """Context length; None for all lengths."""
    task: str | None = None
    """RULER's task; None for all tasks."""
    asked: int
    """Questions that both have answered."""
    first: float
    second: float
    interval: tuple[float, float]
    """95% interval of the second mean less the first."""
    p_value: float | None = None
    """Of a paired test; None if the prompts differ."""
    adjusted: float | None = None
    """The p-value adjusted for the tests of its family (Holm)."""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, rounded to six digits."""
        length = {} if self.length is None else {"context_length": self.length}
        task = {} if self.task is None else {"task": self.task}
        p_values = {"p_value": self.p_value, "p_value_holm": self.adjusted}
        return {
            **length,
            **task,
            "asked": self.asked,
            "first": round(self.first, 6),
            "second": round(self.second, 6),
            "difference": round(self.second - self.first, 6),
            "interval95": [round(bound, 6) for bound in self.interval],
            **{name: None if p is None else round(p, 6) for name, p in p_values.items()},
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartChanges:
    """Differences of two models in one part."""

    part: str
    is_paired: bool
    """True if the models had the same prompts."""
    missing: tuple[int, int]
    """Questions that the first, and the second, has not answered and the other has."""
    overall: Change
    by_length: Sequence[Change]
    by_task: Sequence[Change]
    """Differences of each task, if the part has tasks."""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return {
            "part": self.part,
            "unit": "nats" if self.part == PERPLEXITY else "score",
            "paired": self.is_paired,
            "missing": list(self.missing),
            "overall": self.overall.to_json(),
            "by_length": [change.to_json() for change in self.by_length],
            "by_task": [change.to_json() for change in self.by_task],
        }


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """Compares the models of some folders with that of the first.

    Args:
        folders: Folders of `lwm eval all`, or of single evaluations.

    Returns:
        Models, differences of each to the first with intervals and p-values, and notes.

    Raises:
        UserError: A folder has no results, they are damaged, or the questions differ.
    """
    if len(folders) < 2:
        raise UserError("a comparison needs two folders or more")
    recorded = [read_folder(folder) for folder in folders]
    first, *others = recorded
    names, notes = _names(recorded, folders), list[str]()
    comparisons = []
    for name, other in zip(names[1:], others, strict=True):
        for part in sorted({*first, *other} - ({*first} & {*other})):
            notes.append(f"{part}: only {names[0] if part in first else name} was asked")
        changes = list(_changes(first, other, (names[0], name), notes))
        if not changes:
            raise UserError(f"{names[0]} and {name} have no results of the same questions")
        comparisons.append({"second": name, "parts": [each.to_json() for each in _tested(changes)]})
    return {
        "comparison": "eval",
        "models": [
            {"name": name, "model": next(iter(each.values())).header["model"]}
            for name, each in zip(names, recorded, strict=True)
        ],
        "first": names[0],
        "notes": notes,
        "comparisons": comparisons,
    }


def read_folder(folder: Path) -> dict[str, Recorded]:
    """Reads the results in a folder, or in its folders, by part.

    Raises:
        UserError: There are none, or they are damaged.
    """
    paths = [folder / RESULTS] if (folder / RESULTS).exists() else folder.glob(f"*/{RESULTS}")
    found = {each.part: each for each in map(Recorded.read, sorted(paths))}
    if not found:
        raise UserError(f"{folder} has no results of an evaluation; give a folder of lwm eval")
    return found


def _names(recorded: Sequence[Mapping[str, Recorded]], folders: Sequence[Path]) -> list[str]:
    """Returns the models' names, with their folders if two are equal."""
    names = [next(iter(each.values())).model for each in recorded]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({folder})" for name, folder in zip(names, folders, strict=True)]


def _changes(
    first: Mapping[str, Recorded],
    second: Mapping[str, Recorded],
    names: tuple[str, str],
    notes: list[str],
) -> Iterator[PartChanges]:
    for part in first:
        if part not in second:
            continue
        one, two = first[part], second[part]
        _require_same_questions(one, two)
        common = [key for key in one.rows if key in two.rows]
        missing = len(two.rows) - len(common), len(one.rows) - len(common)
        notes += [
            f"{part}: {count:,} questions of the other are missing in {name}"
            for name, count in zip(names, missing, strict=True)
            if count
        ]
        if not common:
            continue
        pairs = [(one.rows[key], two.rows[key]) for key in common]
        is_paired = all(_prompt(a) == _prompt(b) for a, b in pairs)
        if not is_paired and part == PERPLEXITY:
            notes.append(f"{part}: not compared, since the tokenizers differ")
            continue
        if not is_paired:
            notes.append(
                f"{part}: the prompts of {names[0]} and {names[1]} differ, as with other "
                "tokenizers or templates; intervals are not paired, and wider"
            )
        yield _part_changes(part, pairs, is_paired, missing)


def _part_changes(
    part: str,
    pairs: Sequence[tuple[ResultRow, ResultRow]],
    is_paired: bool,
    missing: tuple[int, int],
) -> PartChanges:
    measure: Callable[[ResultRow], float] = _loss if part == PERPLEXITY else score_of
    scores = [(row, measure(row), measure(other)) for row, other in pairs]

    def changes(field: str) -> Iterator[tuple[Any, Change]]:
        values = dict.fromkeys(row[field] for row, _, _ in scores if field in row)
        for value in values:
            own = [(a, b) for row, a, b in scores if row.get(field) == value]
            yield value, _change(own, is_paired)

    by_length = sorted(changes("context_length"), key=lambda found: found[0])
    return PartChanges(
        part=part,
        is_paired=is_paired,
        missing=missing,
        overall=_change([(a, b) for _, a, b in scores], is_paired),
        by_length=[dataclasses.replace(change, length=length) for length, change in by_length],
        by_task=[dataclasses.replace(change, task=task) for task, change in changes("task")],
    )


def _change(pairs: Sequence[tuple[float, float]], is_paired: bool) -> Change:
    one, two = [a for a, _ in pairs], [b for _, b in pairs]
    first, second = sum(one) / len(one), sum(two) / len(two)
    if is_paired:
        found = paired_difference(one, two)
        interval, p_value = found.interval, found.p_value
    else:
        interval, p_value = _apart(one, two), None
    return Change(
        asked=len(pairs),
        first=first,
        second=second,
        interval=interval,
        p_value=p_value,
    )


def _apart(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Returns a 95% interval of the difference of means of different questions.

    It joins the intervals of both (R. G. Newcombe, Statistics in Medicine 17 (1998), 873-890,
    method 10).
    """
    (low1, high1), (low2, high2) = mean_interval(first), mean_interval(second)
    mean1, mean2 = sum(first) / len(first), sum(second) / len(second)
    gain = mean2 - mean1
    return (
        gain - math.hypot(mean2 - low2, high1 - mean1),
        gain + math.hypot(high2 - mean2, mean1 - low1),
    )


def _tested(changes: Sequence[PartChanges]) -> list[PartChanges]:
    """Adjusts the p-values: of the parts together, of all their lengths, and of all tasks."""
    overall = iter(_adjusted([each.overall for each in changes]))
    lengths = iter(_adjusted([change for each in changes for change in each.by_length]))
    tasks = iter(_adjusted([change for each in changes for change in each.by_task]))
    return [
        dataclasses.replace(
            each,
            overall=next(overall),
            by_length=[next(lengths) for _ in each.by_length],
            by_task=[next(tasks) for _ in each.by_task],
        )
        for each in changes
    ]


def _adjusted(family: Sequence[Change]) -> list[Change]:
    values = iter(holm([each.p_value for each in family if each.p_value is not None]))
    return [
        each if each.p_value is None else dataclasses.replace(each, adjusted=next(values))
        for each in family
    ]


def _require_same_questions(one: Recorded, two: Recorded) -> None:
    """Refuses results whose questions differ otherwise than by the tokenizer.

    Raises:
        UserError: The first field that differs.
    """
    if found := difference(_identity(one.header), _identity(two.header)):
        raise UserError(
            f"{one.path.parent} and {two.path.parent} do not have the same questions ({found}); "
            "evaluate one again as the other"
        )


def _identity(header: ResultRow) -> dict[str, Any]:
    found = {}
    for name in _IDENTITY:
        value: Any = header
        for step in name.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        found[name] = value
    # The form of the prompt may suit each model; then the prompts differ.
    found["config"] = {k: v for k, v in (found["config"] or {}).items() if k != "prompt"}
    return found


def _prompt(row: ResultRow) -> Any:
    """Returns what shows that two prompts are the same; of earlier versions, their length."""
    return row.get("prompt_sha256", (row.get("built_length"),))


def _loss(row: ResultRow) -> float:
    """Returns the mean loss of a text in nats."""
    sums = [(nll, count) for _, _, nll, count in row["by_position"]]
    return math.fsum(nll for nll, _ in sums) / sum(count for _, count in sums)
