"""Prompts of the needle tests, cut to their context lengths.

The protocol is that of LWM's `scripts/eval_needle.py` and `eval_needle_multi.py`: needles,
questions, instructions, cities. Differences: the length includes everything, in the model's own
tokens; a needle stands at the end of a sentence, unless that is far; several needles have
different cities, and none is placed inside another; and they depend only on the seed and the cell.
"""

import dataclasses
import itertools
import random
from collections.abc import Sequence, Set

import numpy as np
from jaxtyping import Int

from lwm.errors import UserError
from lwm.eval.needle.config import CITIES, NeedleConfig
from lwm.eval.needle.haystack import NEAR, Haystack
from lwm.eval.needle.texts import RoundTexts, Source, Texts
from lwm.eval.prompt import PromptEncoder
from lwm.eval.question import Question
from lwm.tokenizer.tokenizer import Tokenizer

NEEDLE = "\nThe special magic {city} number is: {number}\n"
_OTHER = "\tX"
"""A text that begins with other characters than the needle, and with other visible ones."""
INSTRUCTION = (
    "Don't give information outside the document or repeat your findings. "
    "Keep your response short and direct."
)
INSTRUCTION_SEVERAL = "Don't give information outside the document."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needle:
    """A number hidden in a text."""

    city: str
    number: str
    depth: float
    """Position in percent: 0 before the haystack, 100 after it."""

    @property
    def text(self) -> str:
        """The line that is hidden."""
        return NEEDLE.format(city=self.city, number=self.number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One question: its place in the grid, and its round."""

    length: int
    depth: float | None = None
    """Depth of a single needle; several stand at random depths."""
    round: int

    def needles(
        self, count: int, seed: int | str, *, taken: Set[str] = frozenset()
    ) -> list[Needle]:
        """Samples cities and the seven digits of their numbers; for several also the depths.

        Args:
            count: Number of needles; their cities and numbers differ.
            seed: Seed beside the cell.
            taken: Numbers that are not used.
        """
        if self.depth is not None:
            generator = random.Random(f"{seed}/{self.length}/{self.depth:g}/{self.round}")
            cities, depths = [CITIES[generator.randrange(len(CITIES))]], [self.depth]
        else:
            generator = random.Random(f"{seed}/{self.length}/{count} needles/{self.round}")
            cities = generator.sample(CITIES, count)
            depths = [float(depth) for depth in generator.sample(range(101), count)]
        found: list[Needle] = []
        used = set(taken)
        for city, depth in zip(cities, depths, strict=True):
            while (number := str(generator.randrange(10**6, 10**7))) in used:
                pass
            used.add(number)
            found.append(Needle(city=city, number=number, depth=depth))
        return found


def question_for(cities: Sequence[str], *, planted: int) -> str:
    """Returns LWM's question for the numbers of some cities, of so many needles."""
    if planted == 1:
        return f"What is the special magic {cities[0]} number?"
    if len(cities) == 1:
        return f"What is the special magic number for {cities[0]}?"
    listed = f"{', '.join(cities[:-1])}, and {cities[-1]}"
    return f"What are the special magic numbers for {listed}?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
    """Needles in a text that starts at a character of a haystack and may end anywhere."""

    haystack: Haystack
    start: int
    end: int
    """Character at which the source ends."""
    needles: Sequence[Needle]

    def places(self, end: int) -> list[int]:
        """Returns the characters before which the needles stand."""
        before = self.haystack.tokens_before(self.start)
        size = self.haystack.tokens_before(end) - before
        return [
            end
            if needle.depth == 100
            else self.haystack.sentence_at(
                before + int(size * needle.depth / 100), start=self.start, near=size // NEAR
            )
            for needle in self.needles
        ]

    def context(self, end: int) -> str:
        """Returns the text up to a character, and the needles in it."""
        pieces, last = [], self.start
        for place, index in sorted(zip(self.places(end), range(len(self.needles)), strict=True)):
            pieces += [self.haystack.text[last:place], self.needles[index].text]
            last = place
        return "".join([*pieces, self.haystack.text[last:end]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Draft:
    """Prompt whose haystack ends at a character."""

    message: str
    ids: list[int]
    end: int = 0


class Prompts:
    """Builds the prompt of each cell, as long as its length allows."""

    def __init__(
        self,
        config: NeedleConfig,
        tokenizer: Tokenizer,
        *,
        template: str | None = None,
        texts: Texts | None = None,
        seed: int | str | None = None,
        taken: Set[str] = frozenset(),
    ):
        """Reads the haystack.

        Args:
            config: The grid and the questions.
            tokenizer: The model's.
            template: A chat template in place of the tokenizer's.
            texts: Texts of the rounds; by default those of the configuration's haystack.
            seed: A seed in place of the configuration's.
            taken: Numbers that no needle has.

        Raises:
            UserError: The haystack is too short, or the least length has no room for the question.
        """
        self.config, self._tokenizer = config, tokenizer
        self._encode = PromptEncoder(tokenizer=tokenizer, form=config.prompt, template=template)
        self._seed, self._taken = config.seed if seed is None else seed, taken
        longest = max(config.all_lengths)
        self.texts: Texts = texts or RoundTexts(
            Source.open(config.haystack), tokenizer, longest=longest
        )
        cells = [
            Cell(length=length, depth=depth, round=round)
            for length in config.all_lengths
            for depth in self._depths_of(config)
            for round in range(config.rounds)
        ]
        self.cells = sorted(cells, key=self._order)
        """All cells, in an order that shares the longest prefixes."""

    def require_possible(self) -> None:
        """Refuses cells whose prompts cannot be built, before anything is asked.

        Raises:
            UserError: See `build`.
        """
        least, longest = min(self.config.all_lengths), max(self.config.all_lengths)
        for cell in self.cells:
            if cell.length == least:
                self._bare(cell)
        text = self.texts.text(0, longest)
        tokens = text.haystack.tokens_before(text.end) - text.haystack.tokens_before(text.start)
        # Texts of the others have about as many tokens.
        is_doubtful = len(text.haystack.text) >= text.end and tokens < longest + longest // NEAR
        rounds = self.config.rounds if is_doubtful else 1
        depths = self._depths_of(self.config)
        ends = dict.fromkeys((depths[0], depths[-1]))
        for round, depth in itertools.product(range(rounds), ends):
            self.build(Cell(length=longest, depth=depth, round=round))

    @staticmethod
    def _depths_of(config: NeedleConfig) -> tuple[float | None, ...]:
        return config.all_depths if config.needles == 1 else (None,)

    def needles(self, cell: Cell) -> list[Needle]:
        """Returns the needles of a cell; the question asks for the first of them."""
        return cell.needles(self.config.needles, self._seed, taken=self._taken)

    def build(self, cell: Cell) -> Question:
        """Returns the longest prompt that leaves room for the answer, by cutting the haystack.

        The room is that of the question for all needles, so that prompts which ask for fewer of
        them differ in the question alone.

        Raises:
            UserError: The needles and the question alone do not fit, or the haystack is too short.
        """
        layout = self._layout(cell)
        haystack, bare = layout.haystack, self._bare(cell)
        room = self._room(cell)
        is_last = any(needle.depth == 100 for needle in layout.needles)
        # Before a needle the text ends with a sentence, otherwise with a word.
        ends = haystack.sentence_ends if is_last else haystack.word_ends
        best, is_all = self._fill(cell, layout, bare, ends)
        least = room if is_all else room - room // NEAR
        if is_last and len(best.ids) < least and haystack.is_long_after(best.end):
            best, is_all = self._fill(cell, layout, bare, haystack.word_ends)
        if (is_all and len(best.ids) < room) or (best.end > layout.end and not self.config.repeat):
            size = haystack.tokens_before(layout.end) - haystack.tokens_before(layout.start)
            raise UserError(
                f"the haystack {haystack.name} is too short for length {cell.length:,}: all of it "
                f"gives about {len(bare.ids) + size + self.config.answer_tokens:,}; give a longer "
                "one, lower lengths, or repeat it"
            )
        asked = layout.needles[: self.config.ask]
        if len(asked) < len(layout.needles):
            best = self._draft(layout, best.end, asked)
        self._require_shown(layout.needles, best.ids)
        return Question(
            cell=cell,
            message=best.message,
            form=self.config.prompt,
            ids=best.ids,
            overhead=self._encode.overhead,
            max_tokens=self.config.answer_tokens,
            truth={
                "needles": layout.needles,
                "asked": asked,
                "depths": self._depths(layout, bare, best),
                "question": question_for(_cities(asked), planted=len(layout.needles)),
                "is_repeated": best.end > layout.end,
            },
        )

    def _order(self, cell: Cell) -> tuple[int, float, int, int]:
        # The deepest first needle first: each prompt then shares its start with the one before.
        first = min(needle.depth for needle in self.needles(cell))
        return self.texts.start(cell.round), -first * cell.length, -cell.length, cell.round

    def _room(self, cell: Cell) -> int:
        return cell.length - self.config.answer_tokens

    def _layout(self, cell: Cell) -> _Layout:
        haystack, start, end = self.texts.text(cell.round, cell.length)
        return _Layout(haystack=haystack, start=start, end=end, needles=self.needles(cell))

    def _require_shown(self, needles: Sequence[Needle], ids: Sequence[int]) -> None:
        text = self._tokenizer.decode(ids)
        for needle in needles:
            encoded = self._tokenizer.encode(needle.text, special=False)
            shown = self._tokenizer.decode(encoded).strip()
            if needle.number not in shown or shown not in text:
                raise UserError(
                    "the needle is not in the prompt as the model reads it: the chat "
                    "template or the tokenizer changes text; ask with LWM's prompt"
                )

    def _fill(
        self, cell: Cell, layout: _Layout, bare: _Draft, ends: Int[np.ndarray, " E"]
    ) -> tuple[_Draft, bool]:
        """Returns the longest draft that fits and ends at one of these places; True if at the last.

        Each guess is measured in tokens of the whole prompt; `fits` does and `fails` does not.
        """
        haystack, room, start = layout.haystack, self._room(cell), layout.start
        ends = np.concatenate([[start], ends[ends > start]])
        fits, fails, guess = 0, len(ends), 0
        best = latest = bare
        while fails - fits > 1:
            wanted = haystack.tokens_before(int(ends[guess])) + room - len(latest.ids)
            guess = np.searchsorted(ends, haystack.place_after(wanted), side="right") - 1
            guess = min(max(int(guess), fits + 1), fails - 1)
            latest = self._draft(layout, int(ends[guess]), layout.needles)
            if len(latest.ids) <= room:
                fits, best = guess, latest
            else:
                fails = guess
        return best, fails == len(ends)

    def _bare(self, cell: Cell) -> _Draft:
        """Returns the prompt without any haystack."""
        needles = self.needles(cell)
        bare = self._prompt("".join(needle.text for needle in needles), needles)
        if len(bare.ids) > self._room(cell):
            raise UserError(
                f"length {cell.length:,} has no room for the question: without any haystack the "
                f"prompt has {len(bare.ids):,} tokens and the answer "
                f"{self.config.answer_tokens:,}; raise lengths or lower max_tokens"
            )
        return bare

    def _draft(self, layout: _Layout, end: int, asked: Sequence[Needle]) -> _Draft:
        """Returns the prompt with a part of the haystack."""
        return dataclasses.replace(self._prompt(layout.context(end), asked), end=end)

    def _prompt(self, context: str, asked: Sequence[Needle]) -> _Draft:
        planted = self.config.needles
        question = question_for(_cities(asked), planted=planted)
        instruction = INSTRUCTION if planted == 1 else INSTRUCTION_SEVERAL
        message = f"{context} {question} {instruction}"
        return _Draft(message=message, ids=self._encode(message))

    def _depths(self, layout: _Layout, bare: _Draft, draft: _Draft) -> list[float]:
        """Returns the percentage of the haystack's tokens before each needle.

        That of a single needle is counted in the prompt's ids; of several, in the haystack's.
        """
        places = layout.places(draft.end)
        if len(places) > 1:
            start, end = map(layout.haystack.tokens_before, (layout.start, draft.end))
            counts = [layout.haystack.tokens_before(place) - start for place in places]
            return [100 * count / max(1, end - start) for count in counts]
        size = len(draft.ids) - len(bare.ids)
        if size <= 0:
            return [layout.needles[0].depth]
        before = self._needle_id(layout, draft, places[0]) - self._needle_id(
            layout, bare, layout.start
        )
        return [min(max(100 * before / size, 0.0), 100.0)]

    def _needle_id(self, layout: _Layout, draft: _Draft, place: int) -> int:
        """Returns the index of the id that holds the needle's first character.

        It is the first that another text in place of the needle would change: ids cannot be found
        by their text, which the tokenizer may have changed.
        """
        other = self._encode(layout.haystack.text[layout.start : place] + _OTHER)
        pairs = zip(draft.ids, other, strict=False)
        shorter = min(len(draft.ids), len(other))
        return next((index for index, (one, two) in enumerate(pairs) if one != two), shorter)


def _cities(needles: Sequence[Needle]) -> list[str]:
    return [needle.city for needle in needles]
