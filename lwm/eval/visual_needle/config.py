"""Configuration of a visual needle test: its grid, its videos and its needles."""

import dataclasses
from pathlib import Path
from typing import Literal

from lwm.errors import UserError

Task = Literal["ask", "draw"]
WORLD = "world"
"""Haystack and needles out of the procedural world, in place of files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualNeedleConfig:
    """Grid of frames and depths, and the questions of each cell.

    A folder of results grows by frames, depths and rounds; the rest stays.
    """

    frames: tuple[int, ...] = (8, 32, 128)
    """Frames of the video, the needle among them."""
    depths: tuple[float, ...] = (0.0, 25.0, 50.0, 75.0, 100.0)
    """Positions of the needle in percent: 0 before the other frames, 100 after them."""
    rounds: int = 1
    """Questions per cell, each with its own needle and its own video."""
    task: Task = "ask"
    """`ask` for what the needle shows, in text, or for the needle as a picture (`draw`)."""
    haystack: str = WORLD
    """A video file; `world`: clips that are generated, without digits."""
    fps: float = 1.0
    """Frames that are taken of each second of a video file."""
    needles: Path | None = None
    """JSONL of `{"image": ..., "question": ..., "answer": ...}`, with paths beside the file; else
    large coloured digits of the world."""
    seed: int = 1234
    """Seed of the needles and of the world's clips."""
    max_tokens: int = 32
    """Largest length of an answer in tokens, which counts against the context; a picture has the
    tokens of a frame."""

    def __post_init__(self):
        """Refuses an impossible grid.

        Raises:
            UserError: The value.
        """
        for name, values in (("frames", self.frames), ("depths", self.depths)):
            if not values:
                raise UserError(f"{name} are empty; give at least one")
        for name, value, least in (
            ("frames", min(self.frames), 2),
            ("rounds", self.rounds, 1),
            ("max_tokens", self.max_tokens, 1),
        ):
            if value < least:
                raise UserError(f"{name} {value} must be {least} or more")
        if not all(0 <= depth <= 100 for depth in self.depths):
            listed = ", ".join(f"{depth:g}" for depth in self.depths)
            raise UserError(f"depths {listed} must be percents from 0 to 100")
        if not 0 < self.fps < float("inf"):
            raise UserError(f"fps {self.fps:g} must be above 0")

    @property
    def folder(self) -> str:
        """Usual name of the folder of results."""
        return f"visual-needle-{self.task}"

    @property
    def all_frames(self) -> tuple[int, ...]:
        """Each number of frames once, ascending."""
        return tuple(sorted(set(self.frames)))

    @property
    def all_depths(self) -> tuple[float, ...]:
        """Each depth once, ascending."""
        return tuple(sorted(set(map(float, self.depths))))

    @property
    def is_of_world(self) -> bool:
        """True if the haystack is generated."""
        return self.haystack == WORLD
