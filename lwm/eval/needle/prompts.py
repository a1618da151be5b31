"""Prompts of the single-needle test, cut to their context lengths.

The protocol is that of LWM's `scripts/eval_needle.py`: needle, question, instruction, cities.
Differences: the length includes everything, in the model's own tokens; the needle stands at the
end of a sentence, unless that is far; and it depends only on the seed and the cell.
"""

import dataclasses
import random

import numpy as np
from jaxtyping import Int

from lwm.errors import UserError
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.haystack import NEAR, Haystack
from lwm.eval.prompt import PromptEncoder
from lwm.tokenizer.tokenizer import Tokenizer

NEEDLE = "\nThe special magic {city} number is: {number}\n"
QUESTION = "What is the special magic {city} number?"
_OTHER = "\tX"
"""A text that begins with other characters than the needle, and with other visible ones."""
INSTRUCTION = (
    "Don't give information outside the document or repeat your findings. "
    "Keep your response short and direct."
)
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
class Cell:
    """One question: its place in the grid, and its round."""

    length: int
    depth: float
    round: int

    def needle(self, seed: int) -> tuple[str, str]:
        """Samples the city and the seven digits of its number."""
        generator = random.Random(f"{seed}/{self.length}/{self.depth:g}/{self.round}")
        city = CITIES[generator.randrange(len(CITIES))]
        return city, str(generator.randrange(10**6, 10**7))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """Prompt of a cell."""

    ids: list[int]
    length: int
    """Tokens of the prompt and of the room for its answer."""
    city: str
    number: str
    needle: str
    depth: float
    """Percentage of the haystack's tokens before the needle, counted in `ids`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Draft:
    """Ids of a prompt with a part of the haystack, in characters; the needle may be within."""

    ids: list[int]
    start: int
    place: int
    """The needle's."""
    end: int


class Prompts:
    """Builds the prompt of each cell, as long as its length allows."""

    def __init__(self, config: NeedleConfig, tokenizer: Tokenizer, *, template: str | None = None):
        """Reads the haystack.

        Raises:
            UserError: It is too short, or the least length has no room for the question.
        """
        self._config, self._tokenizer = config, tokenizer
        self._encode = PromptEncoder(tokenizer=tokenizer, form=config.prompt, template=template)
        self._longest = max(config.all_lengths)
        self.haystack = Haystack.open(
            config.haystack,
            tokenizer,
            least=self._longest if config.repeat else 0,
            most=self._longest * config.rounds,
        )
        cells = [
            Cell(length=length, depth=depth, round=round)
            for length in config.all_lengths
            for depth in config.all_depths
            for round in range(config.rounds)
        ]
        # The deepest needle first: each prompt then shares its start with the one before.
        self.cells = sorted(
            cells, key=lambda c: (self._start(c.round), -c.depth * c.length, -c.length, c.round)
        )
        """All cells, in an order that shares the longest prefixes."""
        for cell in self.cells:
            if cell.length == min(config.all_lengths):
                self._bare(cell)
        for depth in {min(config.all_depths), max(config.all_depths)}:
            self.build(Cell(length=self._longest, depth=depth, round=0))

    def build(self, cell: Cell) -> Prompt:
        """Returns the longest prompt that leaves room for the answer, by cutting the haystack.

        Raises:
            UserError: The needle and the question alone do not fit, or the haystack is too short.
        """
        haystack, bare = self.haystack, self._bare(cell)
        room = cell.length - self._config.max_tokens
        # Before a needle the text ends with a sentence, otherwise with a word.
        ends = haystack.sentence_ends if cell.depth == 100 else haystack.word_ends
        best, is_all = self._fill(cell, bare, ends)
        least = room if is_all else room - room // NEAR
        if cell.depth == 100 and len(best.ids) < least and haystack.is_long_after(best.end):
            best, is_all = self._fill(cell, bare, haystack.word_ends)
        if is_all and len(best.ids) < room:
            raise UserError(
                f"the haystack {haystack.name} is too short for length {cell.length:,}: all of it "
                f"gives {len(best.ids) + self._config.max_tokens:,}; give a longer one, lower "
                "lengths, or repeat it"
            )
        city, number, needle = self._needle(cell)
        shown = self._tokenizer.decode(self._tokenizer.encode(needle, special=False)).strip()
        if number not in shown or shown not in self._tokenizer.decode(best.ids):
            raise UserError(
                "the needle is not in the prompt as the model reads it: the chat "
                "template or the tokenizer changes text; ask with LWM's prompt"
            )
        return Prompt(
            ids=best.ids,
            length=len(best.ids) + self._config.max_tokens,
            city=city,
            number=number,
            needle=needle,
            depth=self._depth(cell, bare, best),
        )

    def _fill(self, cell: Cell, bare: _Draft, ends: Int[np.ndarray, " E"]) -> tuple[_Draft, bool]:
        """Returns the longest draft that fits and ends at one of these places; True if at the last.

        Each guess is measured in tokens of the whole prompt; `fits` does and `fails` does not.
        """
        room, start = cell.length - self._config.max_tokens, bare.end
        ends = np.concatenate([[start], ends[ends > start]])
        fits, fails, guess = 0, len(ends), 0
        best = latest = bare
        while fails - fits > 1:
            wanted = self.haystack.tokens_before(int(ends[guess])) + room - len(latest.ids)
            guess = np.searchsorted(ends, self.haystack.place_after(wanted), side="right") - 1
            guess = min(max(int(guess), fits + 1), fails - 1)
            latest = self._draft(cell, start, int(ends[guess]))
            if len(latest.ids) <= room:
                fits, best = guess, latest
            else:
                fails = guess
        return best, fails == len(ends)

    def _bare(self, cell: Cell) -> _Draft:
        """Returns the prompt without any haystack."""
        start = self._start(cell.round)
        bare = self._draft(cell, start, start)
        if len(bare.ids) + self._config.max_tokens > cell.length:
            raise UserError(
                f"length {cell.length:,} has no room for the question: without any haystack the "
                f"prompt has {len(bare.ids):,} tokens and the answer {self._config.max_tokens:,}; "
                "raise lengths or lower max_tokens"
            )
        return bare

    def _start(self, round: int) -> int:
        return self.haystack.start(round, self._config.rounds, self._longest)

    def _needle(self, cell: Cell) -> tuple[str, str, str]:
        """Returns the city, its number, and the needle that says so."""
        city, number = cell.needle(self._config.seed)
        return city, number, NEEDLE.format(city=city, number=number)

    def _draft(self, cell: Cell, start: int, end: int) -> _Draft:
        """Builds the prompt with a part of the haystack."""
        haystack, text = self.haystack, self.haystack.text
        city, _, needle = self._needle(cell)
        before = haystack.tokens_before(start)
        size = haystack.tokens_before(end) - before
        place = end
        if cell.depth < 100:
            wanted = before + int(size * cell.depth / 100)
            place = haystack.sentence_at(wanted, start=start, near=size // NEAR)
        context = f"{text[start:place]}{needle}{text[place:end]}"
        ids = self._encode(f"{context} {QUESTION.format(city=city)} {INSTRUCTION}")
        return _Draft(ids=ids, start=start, place=place, end=end)

    def _depth(self, cell: Cell, bare: _Draft, draft: _Draft) -> float:
        """Returns the percentage of the haystack's ids before the needle, by the prompt's ids."""
        size = len(draft.ids) - len(bare.ids)
        if size <= 0:
            return cell.depth
        before = self._needle_id(draft) - self._needle_id(bare)
        return min(max(100 * before / size, 0.0), 100.0)

    def _needle_id(self, draft: _Draft) -> int:
        """Returns the index of the id that holds the needle's first character.

        It is the first that another text in place of the needle would change: ids cannot be found
        by their text, which the tokenizer may have changed.
        """
        other = self._encode(self.haystack.text[draft.start : draft.place] + _OTHER)
        pairs = zip(draft.ids, other, strict=False)
        shorter = min(len(draft.ids), len(other))
        return next((index for index, (one, two) in enumerate(pairs) if one != two), shorter)
