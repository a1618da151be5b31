"""Accuracies over a grid with their confidence intervals, as JSON and as a table."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from lwm.eval.results import ResultRow
from lwm.eval.statistics import wilson


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Counts of correct answers and of questions."""

    correct: int
    asked: int

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return self.correct / self.asked

    def to_json(self) -> dict[str, Any]:
        """Returns counts, accuracy and interval, rounded to six digits."""
        interval = [round(bound, 6) for bound in wilson(self.correct, self.asked)]
        accuracy = round(self.accuracy, 6)
        return {
            "correct": self.correct,
            "asked": self.asked,
            "accuracy": accuracy,
            "wilson95": interval,
        }

    def __str__(self) -> str:
        low, high = wilson(self.correct, self.asked)
        return f"{self.accuracy:.0%} ({100 * low:.0f}-{100 * high:.0f})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleReport:
    """Answers of one evaluation, in any order."""

    header: ResultRow
    """Model, configuration and versions: the first line of the results."""
    rows: Sequence[ResultRow]

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.header["model"]["name"]

    @property
    def lengths(self) -> list[int]:
        """The context lengths, ascending."""
        return sorted({row["context_length"] for row in self.rows})

    @property
    def depths(self) -> list[float]:
        """The depths, ascending."""
        return sorted({row["depth_percent"] for row in self.rows})

    def score(self, *, length: int | None = None, depth: float | None = None) -> Score:
        """Counts the answers of the whole grid, a length, a depth or a cell."""
        chosen = [
            row["correct"]
            for row in self.rows
            if length in (None, row["context_length"]) and depth in (None, row["depth_percent"])
        ]
        return Score(correct=sum(chosen), asked=len(chosen))

    def to_json(self) -> str:
        """Returns the report; equal answers give equal text."""
        lengths, depths = self.lengths, self.depths
        cells = [
            {"context_length": n, "depth_percent": d} | self.score(length=n, depth=d).to_json()
            for n in lengths
            for d in depths
        ]
        by_length = [
            {"context_length": n, "built_length": self._built(n)} | self.score(length=n).to_json()
            for n in lengths
        ]
        by_depth = [{"depth_percent": d} | self.score(depth=d).to_json() for d in depths]
        whole = dict(self.header) | {
            "overall": self.score().to_json(),
            "by_length": by_length,
            "by_depth": by_depth,
            "cells": cells,
        }
        return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"

    def _built(self, length: int) -> list[int]:
        """Returns the smallest and the largest length of the built prompts."""
        built = [row["built_length"] for row in self.rows if row["context_length"] == length]
        return [min(built), max(built)]

    def table(self) -> str:
        """Returns the grid in Markdown; margins have 95% Wilson intervals in percent."""
        lengths = self.lengths
        rows = [["depth", *(f"{n:,}" for n in lengths), "all lengths"]]
        for d in self.depths:
            cells = [f"{self.score(length=n, depth=d).accuracy:.0%}" for n in lengths]
            rows.append([f"{d:g}%", *cells, str(self.score(depth=d))])
        total = [str(self.score(length=n)) for n in lengths]
        rows.append(["all depths", *total, str(self.score())])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        rows.insert(1, [f"{'-' * (width - 1)}:" for width in widths])
        return "\n".join(
            f"| {' | '.join(c.rjust(w) for c, w in zip(row, widths, strict=True))} |"
            for row in rows
        )
