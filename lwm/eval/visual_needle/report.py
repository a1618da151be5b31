"""Scores of visual needle tests with their confidence intervals, as JSON and as a table."""

import dataclasses
import json
from collections.abc import Sequence

from lwm.eval.markdown import markdown_table
from lwm.eval.needle.report import Score
from lwm.eval.results import ResultRow, score_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualNeedleReport:
    """Answers of one folder: all that were recorded there."""

    header: ResultRow
    """Model, configuration and versions: the first line of the results."""
    rows: Sequence[ResultRow]

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.header["model"]["name"]

    @property
    def frames(self) -> list[int]:
        """The numbers of frames, ascending."""
        return sorted({row["frames"] for row in self.rows})

    @property
    def depths(self) -> list[float]:
        """The depths, ascending."""
        return sorted({row["depth_percent"] for row in self.rows})

    def score(self, *, frames: int | None = None, depth: float | None = None) -> Score:
        """Returns the scores of the whole grid, of a number of frames, a depth or a cell."""
        return Score(
            scores=tuple(
                score_of(row)
                for row in self.rows
                if frames in (None, row["frames"]) and depth in (None, row["depth_percent"])
            )
        )

    def to_json(self) -> str:
        """Returns the header, and the scores of the whole, its margins and its cells."""
        tokens = {row["frames"]: row["context_length"] for row in self.rows}
        by_length = [
            {"context_length": tokens[n], "frames": n} | self.score(frames=n).to_json(single=True)
            for n in self.frames
        ]
        by_depth = [
            {"depth_percent": d} | self.score(depth=d).to_json(single=True) for d in self.depths
        ]
        cells = [
            {"context_length": tokens[n], "frames": n, "depth_percent": d}
            | score.to_json(single=True)
            for n in self.frames
            for d in self.depths
            if (score := self.score(frames=n, depth=d)).asked
        ]
        whole = dict(self.header) | {
            "axes": ["frames", "depth_percent"],
            "overall": self.score().to_json(single=True),
            **self._possible(),
            "by_length": by_length,
            "by_depth": by_depth,
            "cells": cells,
        }
        return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"

    def _possible(self) -> dict[str, float]:
        """Returns the score of the needles themselves, decoded from their codes, if it is known."""
        known = [row["possible"] for row in self.rows if "possible" in row]
        return {"possible": round(sum(known) / len(known), 6)} if known else {}

    def table(self) -> str:
        """Returns the grid in Markdown; margins have 95% intervals in percent."""
        rows = [["depth", *(f"{n:,} frames" for n in self.frames), "all frames"]]
        for d in self.depths:
            scores = [self.score(frames=n, depth=d) for n in self.frames]
            cells = [f"{score.accuracy:.0%}" if score.asked else "-" for score in scores]
            rows.append([f"{d:g}%", *cells, str(self.score(depth=d))])
        total = [str(self.score(frames=n)) for n in self.frames]
        return markdown_table([*rows, ["all depths", *total, str(self.score())]])

    def statement(self) -> str:
        """Returns the overall score beside the chance level, in a sentence."""
        chance, known = self.header["chance"], self._possible()
        best = f", of the needles themselves {known['possible']:.1%}" if known else ""
        return f"Score {self.score()}; by chance {chance:.1%}{best}."
