"""Scores of needle tests with their confidence intervals, as JSON and as a table."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from lwm.eval.markdown import markdown_table
from lwm.eval.results import ResultRow
from lwm.eval.statistics import mean_interval, wilson

CHANCE = 0.0
"""Score of a program that does not read: there are nine million numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Scores of answers, each from 0 to 1."""

    scores: tuple[float, ...]

    @property
    def correct(self) -> float:
        """Sum of the scores: of single needles the number of correct answers."""
        return float(sum(self.scores))

    @property
    def asked(self) -> int:
        """Number of questions."""
        return len(self.scores)

    @property
    def accuracy(self) -> float:
        """Mean score: the share of the needles that were found; NaN without any answer."""
        return self.correct / self.asked if self.asked else math.nan

    def to_json(self, *, single: bool) -> dict[str, Any]:
        """Returns mean and interval, rounded to six digits; of single needles also counts."""
        interval = [round(bound, 6) for bound in mean_interval(self.scores)]
        mean = round(self.accuracy, 6)
        found: dict[str, Any] = {"asked": self.asked, "score": mean, "interval95": interval}
        if single:
            bounds = [round(bound, 6) for bound in wilson(round(self.correct), self.asked)]
            found |= {"correct": round(self.correct), "accuracy": mean, "wilson95": bounds}
        return found

    def __str__(self) -> str:
        if not self.asked:
            return "-"
        low, high = mean_interval(self.scores)
        return f"{self.accuracy:.0%} ({100 * low:.0f}-{100 * high:.0f})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleReport:
    """Answers of one folder, in any order: all that were recorded there."""

    header: ResultRow
    """Model, configuration and versions: the first line of the results."""
    rows: Sequence[ResultRow]

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.header["model"]["name"]

    @property
    def note(self) -> str:
        """The questions, the haystack and the type of the weights, for figures."""
        parts = [f"{len(self.rows):,} questions", str(self.header["config"].get("haystack", ""))]
        return ", ".join(part for part in (*parts, self.header["model"].get("dtype", "")) if part)

    @property
    def lengths(self) -> list[int]:
        """The context lengths, ascending."""
        return sorted({row["context_length"] for row in self.rows})

    @property
    def depths(self) -> list[float]:
        """The depths, ascending; several needles have none."""
        return sorted({row["depth_percent"] for row in self.rows if "depth_percent" in row})

    def score(self, *, length: int | None = None, depth: float | None = None) -> Score:
        """Returns the scores of the whole grid, a length, a depth or a cell."""
        return Score(
            scores=tuple(
                # An earlier version recorded no score.
                float(row["score"] if "score" in row else row["correct"])
                for row in self.rows
                if length in (None, row["context_length"])
                and depth in (None, row.get("depth_percent"))
            )
        )

    def to_json(self) -> str:
        """Returns the header, and the scores of the whole, its margins and its cells."""
        depths = self.depths
        single = bool(depths)
        by_length = [
            {"context_length": n, "built_length": self._built(n)}
            | self.score(length=n).to_json(single=single)
            for n in self.lengths
        ]
        by_depth = [
            {"depth_percent": d} | self.score(depth=d).to_json(single=single) for d in depths
        ]
        axes = ["context_length", "depth_percent"] if single else ["context_length"]
        cells = [
            dict(zip(axes, place, strict=True)) | score.to_json(single=single)
            for n in self.lengths
            for place, score in (
                [((n, d), self.score(length=n, depth=d)) for d in depths]
                if single
                else [((n,), self.score(length=n))]
            )
            if score.asked
        ]
        repeated = {"is_repeated": any(row.get("is_repeated", False) for row in self.rows)}
        whole = dict(self.header) | {
            "haystack": repeated | self.header.get("haystack", {}),
            "axes": axes,
            "chance": CHANCE,
            "overall": self.score().to_json(single=single),
            "by_length": by_length,
            **({"by_depth": by_depth} if single else {}),
            "cells": cells,
        }
        return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"

    def _built(self, length: int) -> list[int]:
        """Returns the smallest and the largest length of the built prompts."""
        built = [row["built_length"] for row in self.rows if row["context_length"] == length]
        return [min(built), max(built)]

    def table(self) -> str:
        """Returns the grid in Markdown; margins have 95% intervals in percent."""
        return markdown_table(self._grid() if self.depths else self._lengths())

    def _grid(self) -> list[list[str]]:
        lengths = self.lengths
        rows = [["depth", *(f"{n:,}" for n in lengths), "all lengths"]]
        for d in self.depths:
            scores = [self.score(length=n, depth=d) for n in lengths]
            cells = [f"{score.accuracy:.0%}" if score.asked else "-" for score in scores]
            rows.append([f"{d:g}%", *cells, str(self.score(depth=d))])
        total = [str(self.score(length=n)) for n in lengths]
        return [*rows, ["all depths", *total, str(self.score())]]

    def _lengths(self) -> list[list[str]]:
        rows = [["length", "prompts", "needles found"]]
        for n in self.lengths:
            score = self.score(length=n)
            rows.append([f"{n:,}", f"{score.asked:,}", str(score)])
        return [*rows, ["all", f"{len(self.rows):,}", str(self.score())]]
