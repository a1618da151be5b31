"""Configuration of question answering about images and videos."""

import dataclasses
from pathlib import Path

from lwm.errors import UserError
from lwm.eval.qa.rules import RuleName

INSTRUCTION = "Answer the question using a single word or phrase."
"""Follows each question, as in LLaVA-1.5's evaluations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QAConfig:
    """Rule of a set of questions, its images and videos, and the form of the prompts."""

    rule: RuleName | None = None
    """Scoring rule: vqa, gqa, pope or video; that of `world:` sets is world."""
    media: Path | None = None
    """Folder of the images and videos; else that of the first file of questions."""
    names: str = "{}"
    """Name of the file of an id, such as COCO_val2014_{:012}.jpg or video{}.mp4."""
    blind: bool = False
    """Asks without the images: what can be guessed, and the only form for models of text."""
    count: int | None = None
    """Questions at most, at random over the set; more can be asked later. None: all."""
    max_frames: int = 8
    """Frames of a video at most, evenly spaced."""
    instruction: str = INSTRUCTION
    """Text that follows each question; may be empty."""
    max_tokens: int = 16
    """Tokens of an answer at most."""

    def __post_init__(self):
        """Refuses an impossible configuration.

        Raises:
            UserError: The value.
        """
        for name in ("count", "max_frames", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} {value} must be 1 or more")
        try:
            is_one = "7" in self.names.format(7)
        except (ValueError, IndexError, KeyError):
            is_one = False
        if not is_one:
            raise UserError(
                f"names {self.names!r} should hold one place for an id, such as video{{}}.mp4"
            )
