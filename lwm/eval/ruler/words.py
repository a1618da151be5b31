"""RULER's aggregation tasks: the most common words of a list, and of a coded text."""

import itertools
import math
import random
import string
from typing import NamedTuple

from lwm.eval.ruler.sample import Draft, Sample, random_of
from lwm.eval.ruler.vocabulary import vocabulary

COMMON = 10
COMMON_MESSAGE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\nQuestion: What are the 10 most common "
    "words in the above list?"
)
COMMON_OPENING = " Answer: The top 10 words that appear most often in the list are:"
LONG = 4096
"""Context length from which lists are long."""


class Repeats(NamedTuple):
    """Times that common and other words are in a list, and the same of an example before it."""

    often: int
    rarely: int
    example_words: int
    """Different words of the example."""
    example_often: int
    example_rarely: int


REPEATS = Repeats(30, 3, 40, 10, 3)
SHORT_REPEATS = Repeats(6, 1, 20, 3, 1)

FREQUENT = 3
FREQUENT_MESSAGE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. Please "
    "ignore the dots '....'. What are the three most frequently appeared words in the above coded "
    "text?"
)
FREQUENT_OPENING = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
ALPHA = 2.0
DOTS = "..."
_ZETA = math.pi**2 / 6  # of ALPHA
_LETTERS = 6
_TOKENS_OF_WORD = 50
"""Tokens of the text to each word of its vocabulary."""


class CommonWords(Sample):
    """A list of words, ten of them more common; a unit is a different word."""

    least = COMMON + 1

    def __init__(self, generator: random.Random, *, length: int):
        """Draws the example; the words are drawn as they are needed."""
        self._repeats = repeats = REPEATS if length >= LONG else SHORT_REPEATS
        words = list(itertools.islice(vocabulary().distinct(generator), repeats.example_words))
        listed = _listed(words, repeats.example_often, repeats.example_rarely, generator)
        answer = _numbered(words[:COMMON])
        self._example = f"{COMMON_MESSAGE.format(context=listed)}{COMMON_OPENING} {answer}\n"
        self._order = generator.random()
        self._words: list[str] = []
        self._rest = vocabulary().distinct(generator)

    def draft(self, units: int) -> Draft:
        """Returns example and question about so many different words."""
        self._words += itertools.islice(self._rest, max(0, units - len(self._words)))
        words = self._words[:units]
        order = random_of(self._order, units)
        listed = _listed(words, self._repeats.often, self._repeats.rarely, order)
        return Draft(
            message=self._example + COMMON_MESSAGE.format(context=listed),
            opening=COMMON_OPENING,
            answers=tuple(words[:COMMON]),
        )

    def weight(self, units: int) -> int:
        """Returns the digits of the numbers, and a few tokens for each word of the list."""
        size = COMMON * self._repeats.often + self._repeats.rarely * (units - COMMON)
        digits = len(str(size))
        return 4 * size + digits * (size + 1) - (10**digits - 1) // 9


def _listed(words: list[str], often: int, rarely: int, generator: random.Random) -> str:
    """Repeats the first ten words often and the others rarely, in random order."""
    entries = words[:COMMON] * often + words[COMMON:] * rarely
    generator.shuffle(entries)
    return _numbered(entries)


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


class FrequentWords(Sample):
    """A coded text with the frequencies of a zeta distribution; a unit is a word, nearly.

    The most frequent word is dots, which are to be ignored.
    """

    least = 73
    """From here on, the fourth word in frequency is more frequent than the fifth."""

    def __init__(self, generator: random.Random, *, tokens: int):
        """Draws the vocabulary for a text of so many tokens."""
        size = max(FREQUENT + 2, tokens // _TOKENS_OF_WORD)
        words: dict[str, None] = {}
        while len(words) < size:
            words["".join(generator.choices(string.ascii_lowercase, k=_LETTERS))] = None
        self._words = [DOTS, *list(words)[1:]]
        self._order = generator.random()

    def draft(self, units: int) -> Draft:
        """Returns the question about a text of about so many words."""
        text: list[str] = []
        for rank, word in enumerate(self._words, 1):
            times = int(units * rank**-ALPHA / _ZETA)
            if not times:
                break
            text += [word] * times
        random_of(self._order, units).shuffle(text)
        return Draft(
            message=FREQUENT_MESSAGE.format(context=" ".join(text)),
            opening=FREQUENT_OPENING,
            answers=tuple(self._words[1 : 1 + FREQUENT]),
        )
