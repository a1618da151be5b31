"""What a needle evaluation asks. Free of JAX, so that a command line can show it at once."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lwm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """A grid of context lengths and depths, and what is asked in each of its cells."""

    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Context lengths in the model's tokens; prompt and answer together fit into each."""
    num_lengths: int | None = None
    """Spreads so many lengths evenly from the least to the greatest, as LWM's script does."""
    depths: tuple[float, ...] = (0.0, 25.0, 50.0, 75.0, 100.0)
    """Where the needle is put: 0 before the haystack, 100 after it."""
    num_depths: int | None = None
    """Spreads so many depths evenly from the least to the greatest."""
    rounds: int = 1
    """Questions to a cell, each with a needle and, where there is enough, a text of its own."""
    seed: int = 1234
    """The same seed hides the same needles."""
    max_tokens: int = 64
    """Tokens that an answer may have; they count against the length."""
    prompt: Literal["chat", "lwm"] = "chat"
    """The model's chat template, or the prompt of LWM's script to the letter."""
    haystack: Path | None = None
    """A text or JSONL file (`{"text": ...}` a line), or a folder of .txt; else Moby-Dick 1-3."""
    repeat: bool = False
    """Repeats a haystack that is shorter than the greatest length."""

    def __post_init__(self):
        """Refuses a grid that nothing can be asked in.

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
                    f"give 2 or more, and the least and the greatest of {name}"
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
