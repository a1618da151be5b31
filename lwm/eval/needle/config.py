"""Configuration of a needle evaluation, and what of it decides the prompts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lwm.errors import UserError

# The distinct cities of LWM's list.
CITIES = """Almaty, Amman, Amsterdam, Antananarivo, Astana, Athens, Baghdad, Bangalore, Bangkok,
Barcelona, Beirut, Belgrade, Berlin, Bratislava, Brussels, Bucharest, Budapest, Buenos Aires, Cairo,
Chicago, Colombo, Copenhagen, Dakar, Damascus, Delhi, Doha, Dubai, Helsinki, Ho Chi Minh City,
Istanbul, Jakarta, Johannesburg, Kampala, Khartoum, Kigali, Kuala Lumpur, Lagos, Lima, Lisbon,
Los Angeles, Madrid, Maputo, Melbourne, Mexico City, Moscow, Mumbai, Nairobi, Oslo, Paris,
Port Louis, Rabat, San Francisco, Santiago, Sarajevo, Seattle, Seoul, Shanghai, Sofia, Sydney,
Tashkent, Thimphu, Tokyo, Toronto, Tunis, Vancouver, Victoria, Vienna, Yangon,
Yerevan""".replace("\n", " ").split(", ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """Grid of context lengths and depths, and the questions of each cell.

    A folder of results grows by lengths, depths and rounds; the rest stays.
    """

    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Context lengths in the model's tokens, prompt and answer included."""
    num_lengths: int | None = None
    """Number of lengths, spaced evenly from the smallest to the largest, as in LWM's script."""
    depths: tuple[float, ...] = (0.0, 25.0, 50.0, 75.0, 100.0)
    """Positions of the needle in percent: 0 before the haystack, 100 after it."""
    num_depths: int | None = None
    """Number of depths, spaced evenly from the smallest to the largest."""
    rounds: int = 1
    """Questions per cell, each with its own needles and its own start in the haystack."""
    needles: int = 1
    """Needles in each prompt; several stand at random depths, and the grid has no depths."""
    ask: int = 1
    """Needles that the question asks for."""
    seed: int = 1234
    """Seed of the needles."""
    max_tokens: int | None = None
    """Largest length of an answer in tokens, which counts against the context length; by default
    64, and 32 more for each further needle."""
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
        for name in ("rounds", "needles", "ask", "max_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} {value} must be 1 or more")
        if self.needles > len(CITIES):
            raise UserError(f"needles {self.needles} are more than the {len(CITIES)} cities")
        if self.ask > self.needles:
            raise UserError(f"ask {self.ask} is more than needles {self.needles}; lower it")
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
        if min(self.lengths) <= self.answer_tokens:
            raise UserError(
                f"length {min(self.lengths):,} leaves no room beside an answer of "
                f"{self.answer_tokens:,} tokens; raise lengths or lower max_tokens"
            )

    @property
    def folder(self) -> str:
        """Usual name of the folder of results."""
        return "needle" if self.needles == 1 else f"needle-{self.needles}-{self.ask}"

    @property
    def answer_tokens(self) -> int:
        """Largest length of an answer in tokens."""
        return self.max_tokens or 64 + 32 * (self.needles - 1)

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
            spread = [round(value) for value in spread]
        return tuple(sorted(set(map(float, spread))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleSetConfig:
    """Training and test sets of needles."""

    train: int = 1000
    """Examples to train on."""
    test: int = 100
    """Examples to test on; no needle of theirs is in the others, nor is their text, if the
    haystack is long enough."""
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Lengths of the examples in the model's tokens, in turn; prompt and answer are included."""
    needles: int = 1
    """Needles in each prompt, at random depths."""
    ask: int = 1
    """Needles that the question asks for."""
    seed: int = 0
    """Seed of the needles and their depths."""
    max_tokens: int | None = None
    """Room for an answer, as in an evaluation."""
    prompt: Literal["chat", "lwm"] = "chat"
    """Chats, which the model's template formats, or exactly the prompt of LWM's script."""
    haystack: Path | None = None
    """A text or JSONL file (`{"text": ...}` per line), or a folder of .txt; else Moby-Dick 1-3."""
    repeat: bool = False
    """Repeats a haystack that is shorter than the largest length."""

    def __post_init__(self):
        """Refuses impossible sets.

        Raises:
            UserError: The value.
        """
        if min(self.train, self.test) < 0 or self.train + self.test == 0:
            raise UserError(f"train {self.train} and test {self.test} must be 0 or more, one above")
        if not self.lengths:
            raise UserError("lengths are empty; give at least one")
        for length in self.lengths:
            self.questions(length)

    def questions(self, length: int) -> NeedleConfig:
        """Returns the configuration of the questions of a length."""
        return NeedleConfig(
            lengths=(length,),
            needles=self.needles,
            ask=self.ask,
            max_tokens=self.max_tokens,
            prompt=self.prompt,
            haystack=self.haystack,
            repeat=self.repeat,
        )


def _spread(values: Sequence[float], count: int | None) -> Sequence[float]:
    if count is None:
        return values
    least, greatest = min(values), max(values)
    return [least + (greatest - least) * i / (count - 1) for i in range(count)]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
