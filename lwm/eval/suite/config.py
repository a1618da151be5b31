"""Configuration of a suite: parts, lengths, and the questions of each cell."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from lwm.errors import UserError
from lwm.eval.form import PromptForm
from lwm.eval.ruler.config import TASKS, TaskName

PartName = Literal["needle", "multi", "ruler", "perplexity", "visual", "world", "adherence"]
PARTS: tuple[PartName, ...] = get_args(PartName)
OF_IMAGES: tuple[PartName, ...] = ("visual", "world", "adherence")
"""Parts that a model of text is not asked."""
NEEDLES = ((4, 1), (4, 4))
"""Needles planted and asked for, of the part `multi`."""
_K = 1024
_LENGTHS = (_K, 2 * _K, 4 * _K, 8 * _K)
_LONG = 8 * _K
"""Length from which there are fewer questions by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Parts of a suite and their grids; what is not given is as the preset has it.

    The full one has 25 questions a cell, 10 from 8K on; the quick one a few, up to 4K for RULER.
    """

    quick: bool = False
    """Fewer questions: 2 a cell of the needle, 10 of several needles, 5 of RULER, 2 a cell of the
    visual needle; 8 clips of the world instead of 64, and 8 captions instead of 32."""
    parts: tuple[PartName, ...] = PARTS
    """One needle in a haystack, several needles, RULER's tasks, and perplexity by position; and of
    models that read and write images: visual needles, named and generated, questions about clips
    of the world, and images and videos of its captions."""
    lengths: tuple[int, ...] | None = None
    """Context lengths in the model's tokens, prompt and answer included; else 1K, 2K, 4K and 8K."""
    samples: tuple[int, ...] | None = None
    """Questions of each cell: one number, or one for each length."""
    frames: tuple[int, ...] = (8, 32, 128)
    """Frames of the videos with a visual needle."""
    depths: tuple[float, ...] = (0.0, 25.0, 50.0, 75.0, 100.0)
    """Positions of the single needle in percent: 0 before the haystack, 100 after it."""
    tasks: tuple[TaskName, ...] = TASKS
    """RULER's tasks; all thirteen by default."""
    seed: int = 1234
    """Seed of all questions."""
    prompt: PromptForm = "chat"
    """The model's chat template, LWM's prompt, or for RULER the text alone, for base models."""
    haystack: Path | None = None
    """A text or JSONL file (`{"text": ...}` per line), or a folder of .txt; else Moby-Dick 1-3."""
    repeat: bool = False
    """Repeats a haystack that is shorter than the largest length."""

    def __post_init__(self):
        """Refuses an impossible configuration.

        Raises:
            UserError: The value.
        """
        for name in ("parts", "lengths", "samples", "frames", "depths", "tasks"):
            if getattr(self, name) == ():
                raise UserError(f"{name} are empty; give at least one")
        if self.prompt == "text" and {"needle", "multi"} & set(self.parts):
            raise UserError("prompt text is for ruler and perplexity only; choose these --parts")
        if min(self.frames) < 2:
            raise UserError(f"frames {min(self.frames)} must be 2 or more: a needle and another")
        if self.samples is None:
            return
        if min(self.samples) < 1:
            raise UserError(f"samples {min(self.samples)} must be 1 or more")
        number = len(set(self.lengths or _LENGTHS))
        if len(self.samples) not in (1, number):
            raise UserError(
                f"samples has {len(self.samples)} numbers for {number} lengths; give one number, "
                "or one for each length"
            )

    def count(self, part: PartName) -> int:
        """Returns the questions of a cell, clips or captions of a part that shows images."""
        few, many = {"visual": (2, 10), "world": (8, 64), "adherence": (8, 32)}[part]
        if self.samples is not None:
            return max(self.samples)
        return few if self.quick else many

    def grid(self, part: PartName) -> dict[int, int]:
        """Returns the number of questions of a cell at each length of a part, ascending.

        Of visual needles it is at each number of frames; other parts that show images have none.
        """
        if part in OF_IMAGES:
            frames = sorted(set(self.frames)) if part == "visual" else []
            return dict.fromkeys(frames, self.count(part))
        given = tuple(dict.fromkeys(self.lengths or _LENGTHS))
        lengths: Sequence[int] = given
        if self.quick and part == "ruler" and self.lengths is None:
            lengths = [length for length in lengths if length < _LONG]
        if self.samples is None:
            few = {"needle": 2, "multi": 10, "ruler": 5, "perplexity": 1}[part]
            numbers = [few if self.quick else 10 if n >= _LONG else 25 for n in lengths]
        else:
            each = self.samples * (len(given) if len(self.samples) == 1 else 1)
            known = dict(zip(given, each, strict=True))
            numbers = [known[length] for length in lengths]
        return dict(sorted(zip(lengths, numbers, strict=True)))
