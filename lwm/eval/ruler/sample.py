"""A sample of a task, and the largest prompt of it that a context length has room for."""

import abc
import bisect
import dataclasses
import random
from collections.abc import Callable, Sequence

_FIRST = 64
"""Units beyond the fewest, by which the tokens of a unit are estimated first."""
_GROWTH = 16
"""Times by which a prompt's haystack may be larger than the largest before."""
_FAR = 16
"""Units between two prompts from which the tokens of a unit are estimated."""
_SECANTS = 10
"""Prompts after which the range is halved instead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A prompt with a part of its haystack."""

    message: str
    opening: str
    """Start of the answer, which is given."""
    answers: tuple[str, ...]


class Sample(abc.ABC):
    """A question whose haystack may have any number of units, which are lines, words or documents.

    More units only add to the haystack: question and answers stay.
    """

    least: int = 1
    """The fewest units."""
    most: int = 1 << 40
    """The most units."""
    shared: float = 0.0
    """Part of the haystack before the first text that other samples do not have."""

    @abc.abstractmethod
    def draft(self, units: int) -> Draft:
        """Returns the prompt with so many units."""

    def weight(self, units: int) -> int:
        """Returns a number that grows with the units as the tokens do, nearly."""
        return units


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """The largest prompt that fits."""

    draft: Draft
    ids: list[int]
    units: int


class NoRoomError(Exception):
    """Even the smallest prompt is too long."""

    def __init__(self, tokens: int):
        """Takes the tokens of that prompt."""
        super().__init__(tokens)
        self.tokens = tokens


def random_of(*parts: object) -> random.Random:
    """Returns a generator that depends on the parts alone, on every machine."""
    return random.Random("/".join(map(str, parts)))


def fit(sample: Sample, encode: Callable[[str, str], Sequence[int]], room: int) -> Fitted:
    """Returns the prompt with the most units that has at most `room` tokens.

    One unit more does not fit. Few large prompts are encoded: the next number of units follows
    from the tokens of the last two.

    Args:
        sample: The sample.
        encode: Returns the ids of a message and the start of its answer.
        room: Tokens of the prompt at most.

    Raises:
        NoRoomError: The smallest prompt is too long.
    """

    def build(units: int) -> Fitted:
        draft = sample.draft(units)
        return Fitted(draft=draft, ids=list(encode(draft.message, draft.opening)), units=units)

    best = last = build(sample.least)
    if len(best.ids) > room:
        raise NoRoomError(len(best.ids))
    tokens = 0.0
    """Tokens of a unit of weight; 0 if not known yet."""
    fails, guess, tries = sample.most + 1, sample.least + _FIRST, 0
    while fails - best.units > 1 and len(best.ids) < room:
        new = build(min(max(guess, best.units + 1), fails - 1))
        tries += 1
        change = sample.weight(new.units) - sample.weight(last.units)
        if not tokens or abs(new.units - last.units) >= _FAR:
            tokens = max((len(new.ids) - len(last.ids)) / change, 1e-3)
        last = new
        if len(new.ids) <= room:
            best = new
        else:
            fails = new.units
        if tries > _SECANTS and fails <= sample.most:
            guess = (best.units + fails) // 2
        else:
            known = sample.weight(new.units)
            wanted = min(known + (room - len(new.ids)) / tokens, _GROWTH * known)
            guess = _units(sample, wanted, best.units, fails)
    return best


def _units(sample: Sample, weight: int | float, low: int, high: int) -> int:
    """Returns the most units of at most a weight, from `low` to below `high`."""
    return low + bisect.bisect_right(range(low, high), weight, key=sample.weight) - 1
