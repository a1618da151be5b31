"""Configuration of a needle evaluation."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lwm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """Grid of context lengths and depths, and the questions of each cell."""

    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Context lengths in the model's tokens, prompt and answer included."""
    num_lengths: int | None = None
    """Number of lengths, spaced evenly from the smallest to the largest, as in LWM's script."""
    depths: tuple[float, ...] = (0.0, 25.0, 50.0, 75.0, 100.0)
    """Positions of the needle in percent: 0 before the haystack, 100 after it."""
    num_depths: int | None = None
    """Number of depths, spaced evenly from the smallest to the largest."""
    rounds: int = 1
    """Questions per cell, each with its own needle and, if the haystack is long enough, text."""
    seed: int = 1234
    """Seed of the needles."""
    max_tokens: int = 64
    """Largest length of an answer in tokens; it counts against the context length."""
    prompt: Literal["chat", "lwm"] = "chat"
    """The model's chat template, or exactly the prompt of LWM's script."""
    haystack: Path | None = None
    """A text or JSONL file (`{"text": ...}` per line), or a folder of .txt; else Moby-Dick 1-3."""
    repeat: bool = False
    """Repeats a haystack that is shorter than the largest length."""

    def __post_init__(self):
        """Refuses an impossible grid.

        Raises:
            UserError: The value.
        """
        for name in ("rounds", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be 1 or more")
        for name, values in (("lengths", self.lengths), ("depths", self.depths)):
            if not values:
                raise UserError(f"{name} are empty; give at least one")
            wanted = getattr(self, f"num_{name}")
            if wanted is not None and (wanted < 2 or len(values) < 2):
                raise UserError(
                    f"num_{name} {wanted} spreads values between two ends; "
                    f"give 2 or more, and the smallest and the largest of {name}"
                )
        if not all(0 <= depth <= 100 for depth in self.depths):
            raise UserError(f"depths {_listed(self.depths)} must be percents from 0 to 100")
        if min(self.lengths) <= self.max_tokens:
            raise UserError(
                f"length {min(self.lengths):,} leaves no room beside an answer of "
                f"{self.max_tokens:,} tokens; raise lengths or lower max_tokens"
            )

    @property
    def all_lengths(self) -> tuple[int, ...]:
        """Each context length once, ascending."""
        spread = _spread([float(value) for value in self.lengths], self.num_lengths)
        return tuple(sorted({round(value) for value in spread}))

    @property
    def all_depths(self) -> tuple[float, ...]:
        """Each depth once, ascending; spread ones are whole percents, as LWM's are."""
        spread = _spread(self.depths, self.num_depths)
        if self.num_depths is not None:
            spread = [float(round(value)) for value in spread]
        return tuple(sorted(set(spread)))


def _spread(values: Sequence[float], count: int | None) -> Sequence[float]:
    if count is None:
        return values
    least, greatest = min(values), max(values)
    return [least + (greatest - least) * i / (count - 1) for i in range(count)]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
