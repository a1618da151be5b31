"""Prompts of the single-needle test, cut to their context lengths.

The protocol is that of LWM's `scripts/eval_needle.py`: needle, question, instruction, cities.
Differences: the length includes everything, in the model's own tokens; the needle stands at the
end of a sentence; and the needle of a cell depends only on the seed and the cell.
"""

import dataclasses
import random

import numpy as np

from lwm.errors import UserError
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.haystack import Haystack
from lwm.tokenizer.template import render_chat
from lwm.tokenizer.tokenizer import Tokenizer

NEEDLE = "\nThe special magic {city} number is: {number}\n"
QUESTION = "What is the special magic {city} number?"
INSTRUCTION = (
    "Don't give information outside the document or repeat your findings. "
    "Keep your response short and direct."
)
# LWM's prompt ends in a space; the chat template does not.
LWM_PROMPT = "You are a helpful assistant. USER: {message} ASSISTANT: "
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
    """Percentage of the haystack's tokens before the needle."""


class Prompts:
    """Builds the prompt of each cell, as long as its length allows."""

    def __init__(self, config: NeedleConfig, tokenizer: Tokenizer, *, template: str | None = None):
        """Reads the haystack.

        Raises:
            UserError: It is too short, or the least length has no room for the question.
        """
        self._config, self._tokenizer, self._template = config, tokenizer, template
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
        room = cell.length - self._config.max_tokens
        start = self._start(cell.round)
        # Before a needle the text ends with a sentence, otherwise with a word.
        ends = self.haystack.sentence_ends if cell.depth == 100 else self.haystack.word_ends
        ends = np.concatenate([[start], ends[ends > start]])
        # Each guess is measured in tokens of the whole prompt; `fits` does and `fails` does not.
        fits, fails, guess = 0, len(ends), 0
        best = latest = self._bare(cell)
        while fails - fits > 1:
            wanted = self.haystack.tokens_before(int(ends[guess])) + room - len(latest.ids)
            guess = np.searchsorted(ends, self.haystack.place_after(wanted), side="right") - 1
            guess = min(max(int(guess), fits + 1), fails - 1)
            latest = self._render(cell, start, int(ends[guess]))
            if len(latest.ids) <= room:
                fits, best = guess, latest
            else:
                fails = guess
        if fails == len(ends) and len(best.ids) < room:
            raise UserError(
                f"the haystack {self.haystack.name} is too short for length {cell.length:,}: all "
                f"of it gives {best.length:,}; give a longer one, lower lengths, or repeat it"
            )
        if best.needle.strip() not in self._tokenizer.decode(best.ids):
            raise UserError(
                "the needle is not in the prompt as the model reads it: the chat "
                "template or the tokenizer changes text; ask with LWM's prompt"
            )
        return best

    def _bare(self, cell: Cell) -> Prompt:
        """Returns the prompt without any haystack."""
        start = self._start(cell.round)
        bare = self._render(cell, start, start)
        if bare.length > cell.length:
            raise UserError(
                f"length {cell.length:,} has no room for the question: without any haystack the "
                f"prompt has {len(bare.ids):,} tokens and the answer {self._config.max_tokens:,}; "
                "raise lengths or lower max_tokens"
            )
        return bare

    def _start(self, round: int) -> int:
        return self.haystack.start(round, self._config.rounds, self._longest)

    def _render(self, cell: Cell, start: int, end: int) -> Prompt:
        haystack = self.haystack
        city, number = cell.needle(self._config.seed)
        needle = NEEDLE.format(city=city, number=number)
        before = haystack.tokens_before(start)
        size = haystack.tokens_before(end) - before
        place = end
        if cell.depth < 100:
            place = haystack.sentence_at(before + int(size * cell.depth / 100), start=start)
        text = haystack.text
        context = f"{text[start:place]}{needle}{text[place:end]}"
        message = f"{context} {QUESTION.format(city=city)} {INSTRUCTION}"
        ids = self._encode(message)
        return Prompt(
            ids=ids,
            length=len(ids) + self._config.max_tokens,
            city=city,
            number=number,
            needle=needle,
            depth=100 * (haystack.tokens_before(place) - before) / size if size else cell.depth,
        )

    def _encode(self, message: str) -> list[int]:
        tokenizer = self._tokenizer
        if self._config.prompt == "chat":
            turns = [{"role": "user", "content": message}]
            return render_chat(turns, tokenizer, template=self._template)
        first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        return tokenizer.encode_parts([*first, LWM_PROMPT.format(message=message)])
