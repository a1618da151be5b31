"""The visual needle test as an evaluation: its questions, its results, and what identifies it."""

from collections.abc import Hashable, Sequence
from typing import Any

import jax

import lwm
from lwm.eval.question import Question, Response
from lwm.eval.results import ResultRow
from lwm.eval.subject import Subject
from lwm.eval.visual_needle.config import VisualNeedleConfig
from lwm.eval.visual_needle.needles import Needle
from lwm.eval.visual_needle.prompts import Cell, Prompts, require_images
from lwm.progress import Progress

EVALUATION = "visual-needle"


class VisualNeedleEvaluation:
    """Questions for a picture in a video; see `lwm.eval.ask.Evaluation`."""

    def __init__(
        self,
        config: VisualNeedleConfig,
        subject: Subject,
        *,
        progress: Progress = lambda done, total: None,
    ):
        """Opens the videos and the needles.

        Args:
            config: The grid and the questions.
            subject: The model, which must be in this process.
            progress: See `Prompts`.

        Raises:
            UserError: See `Prompts`.
        """
        self._config, self._subject = config, subject
        model = require_images(subject, draws=config.task == "draw")
        self.prompts = Prompts(config, subject, model, progress=progress)

    @property
    def cells(self) -> Sequence[Cell]:
        """All cells, in an order that shares the longest prefixes."""
        return self.prompts.cells

    def key(self, cell: Cell) -> Hashable:
        """Returns frames, depth and round."""
        return cell.frames, cell.depth, cell.round

    def row_key(self, row: ResultRow) -> tuple[int, float, int]:
        """Returns the key of the cell that a result belongs to."""
        return row_key(row)

    def question(self, cell: Cell) -> Question:
        """Builds the question of a cell."""
        return self.prompts.build(cell)

    def row(self, question: Question, response: Response) -> dict[str, Any]:
        """Returns the result of an answer."""
        cell: Cell = question.cell
        needle: Needle = question.truth["needle"]
        row = {
            "frames": cell.frames,
            "depth_percent": cell.depth,
            "seed": cell.round,
            "needle": needle.name,
            "answer": needle.answer,
            "built_depth_percent": round(100 * cell.place / (cell.frames - 1), 2),
        }
        if not question.frames:
            found = self.prompts.needles.judge(needle, response.text)
            return row | {"response": response.text} | found
        if response.codes is None:
            return row | {"response": "no picture", "score": 0.0}
        (codes,) = response.codes
        found = self.prompts.needles.judge_picture(needle, codes, question.truth["haystack"])
        return row | {"codes": codes.tolist()} | found

    def header(self) -> dict[str, Any]:
        """Returns what the answers depend on, and apart from it the grid, which may grow."""
        config, prompts = self._config, self.prompts
        return {
            "evaluation": EVALUATION,
            "model": dict(self._subject.description),
            "config": identity(config),
            "grid": grid(config),
            "haystack": prompts.haystack.facts(),
            "needles": prompts.needles.facts(),
            "chance": round(prompts.needles.chance, 6),
            "versions": {"lwm": lwm.__version__, "jax": jax.__version__},
            "files": self._subject.files,
        }


def row_key(row: ResultRow) -> tuple[int, float, int]:
    """Returns frames, depth and round of a result."""
    return row["frames"], row["depth_percent"], row["seed"]


def identity(config: VisualNeedleConfig) -> dict[str, Any]:
    """Returns what of a configuration decides a cell's prompt, beside needles and haystack."""
    return {"task": config.task, "seed": config.seed, "max_tokens": config.max_tokens}


def grid(config: VisualNeedleConfig) -> dict[str, Any]:
    """Returns the frames, depths and rounds."""
    return {
        "frames": list(config.all_frames),
        "depths": list(config.all_depths),
        "rounds": config.rounds,
    }
