"""Scores of tasks and lengths, RULER's average of each length, and the effective length."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from lwm.eval.markdown import markdown_table
from lwm.eval.results import ResultRow
from lwm.eval.ruler.config import TASKS
from lwm.eval.ruler.task import ANSWERING, CATEGORIES, RULES
from lwm.eval.statistics import average_interval

CHANCE = 0.0
"""Score of a program that does not read: answers are open."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean:
    """Mean of scores and its 95% interval."""

    asked: int
    score: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, groups: Iterable[Sequence[float]]) -> "Mean":
        """Averages the means of groups, of which each counts as much, as RULER's average does."""
        parts = [group for group in groups if group]
        return cls(
            asked=sum(map(len, parts)),
            score=sum(sum(group) / len(group) for group in parts) / len(parts),
            interval=average_interval(parts),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns count, mean and interval, rounded to six digits."""
        return {
            "asked": self.asked,
            "score": round(self.score, 6),
            "interval95": [round(bound, 6) for bound in self.interval],
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.score:.1f} ({100 * low:.0f}-{100 * high:.0f})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulerReport:
    """Answers of one evaluation, in any order."""

    header: ResultRow
    """Model, configuration and versions: the first line of the results."""
    rows: Sequence[ResultRow]
    threshold: float
    """Least average, in percent, of a length that counts as effective."""

    @property
    def tasks(self) -> list[str]:
        """The tasks that were asked, in RULER's order."""
        asked = {row["task"] for row in self.rows}
        return [task for task in TASKS if task in asked]

    @property
    def lengths(self) -> list[int]:
        """The context lengths, ascending."""
        return sorted({row["context_length"] for row in self.rows})

    def scores(self, task: str, length: int) -> list[float]:
        """Returns the scores of a task at a length."""
        return [
            row["score"]
            for row in self.rows
            if row["task"] == task and row["context_length"] == length
        ]

    def mean(
        self, tasks: Sequence[str] | None = None, lengths: Sequence[int] | None = None
    ) -> Mean | None:
        """Averages over tasks and lengths, by default all; None if nothing was asked."""
        groups = [
            scores
            for task in tasks or self.tasks
            for length in lengths or self.lengths
            if (scores := self.scores(task, length))
        ]
        return Mean.of(groups) if groups else None

    @property
    def effective(self) -> int | None:
        """The largest length with an average of at least the threshold; None if there is none."""
        good = [n for n in self._whole if self._percent(n) >= self.threshold]
        return max(good, default=None)

    @property
    def _whole(self) -> list[int]:
        """Lengths at which all tasks were asked."""
        return [n for n in self.lengths if all(self.scores(task, n) for task in self.tasks)]

    def _percent(self, length: int) -> float:
        mean = self.mean(lengths=[length])
        assert mean is not None, "a length without results"
        return round(100 * mean.score, 9)

    @property
    def is_generated(self) -> bool:
        """True if questions about generated documents were asked."""
        sources = self.header["questions"]
        return any(
            RULES[task].category == ANSWERING and sources[task] == "generated"
            for task in self.tasks
        )

    def statement(self) -> str:
        """States the effective length and what it rests on."""
        if not self._whole:
            return "effective length: not known, since no length was asked in all tasks"
        found = f"below {self._whole[0]:,}" if self.effective is None else f"{self.effective:,}"
        if self.effective == self._whole[-1]:
            found += ", the largest asked"
        count = len(self.tasks)
        over = f"the {count} tasks" if count == len(TASKS) else f"{count} of the {len(TASKS)} tasks"
        generated = ", with generated questions" * self.is_generated
        return (
            f"effective length: {found} (average of at least {self.threshold:g}% over "
            f"{over}{generated})"
        )

    def to_json(self) -> str:
        """Returns the report; equal answers give equal text."""
        whole = dict(self.header) | {
            "axes": ["task", "context_length"],
            "chance": CHANCE,
            "overall": self._entry(),
            "effective_length": {
                "threshold": self.threshold,
                "length": self.effective,
                "tasks": len(self.tasks),
                "generated_questions": self.is_generated,
                "statement": self.statement(),
            },
            "by_length": [
                {"context_length": n, "built_length": self._built(n)} | self._entry(lengths=[n])
                for n in self.lengths
            ],
            "by_task": [{"task": task} | self._entry([task]) for task in self.tasks],
            "by_category": [
                {"category": category, "context_length": n} | self._entry(tasks, [n])
                for category, tasks in self._categories().items()
                for n in self.lengths
                if self.mean(tasks, [n])
            ],
            "cells": [
                {"task": task, "context_length": n} | self._entry([task], [n])
                for task in self.tasks
                for n in self.lengths
                if self.scores(task, n)
            ],
        }
        return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"

    def _entry(
        self, tasks: Sequence[str] | None = None, lengths: Sequence[int] | None = None
    ) -> dict[str, Any]:
        mean = self.mean(tasks, lengths)
        return mean.to_json() if mean else {}

    def _categories(self) -> dict[str, list[str]]:
        """Returns the tasks of each category that has any."""
        found = {
            category: [task for task in self.tasks if RULES[task].category == category]
            for category in CATEGORIES
        }
        return {category: tasks for category, tasks in found.items() if tasks}

    def _built(self, length: int) -> list[int]:
        """Returns the smallest and the largest length of the built prompts."""
        built = [row["built_length"] for row in self.rows if row["context_length"] == length]
        return [min(built), max(built)]

    def table(self) -> str:
        """Returns tasks and lengths in Markdown: percentages with their 95% intervals."""
        lengths = self.lengths
        rows = [["task", *(f"{n:,}" for n in lengths)]]
        named = [(task, [task]) for task in self.tasks]
        named += [(category, tasks) for category, tasks in self._categories().items()]
        named.append(("average", self.tasks))
        for name, tasks in named:
            means = [self.mean(tasks, [n]) for n in lengths]
            rows.append([name, *("" if mean is None else str(mean) for mean in means)])
        return markdown_table(rows, words=True)
