"""Texts of the rounds: each round has its own start in the source of the haystack."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from lwm.errors import UserError
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.haystack import (
    LINE_END,
    SENTENCE_END,
    Haystack,
    blocks_of,
    name_of,
    read_documents,
    token_ends,
    word_ends,
)
from lwm.tokenizer.tokenizer import Tokenizer

MOST = 1 << 26
"""Characters of a source, of which no more are read, so that it has a known length."""
_BLOCK = 1 << 12
"""Characters that are tokenized at a time."""
_SENTENCE, _LINE = 1 << 10, 1 << 8
"""Characters within which a sentence and a line are expected to end."""


class Text(NamedTuple):
    """Haystack of a prompt, which starts at a character of it."""

    haystack: Haystack
    start: int
    end: int
    """Character at which the source ends; what follows repeats it."""


@runtime_checkable
class Texts(Protocol):
    """Text of each round and length."""

    def start(self, round: int) -> int:
        """Returns the character of the source at which a round starts."""
        ...

    def text(self, round: int, length: int) -> Text:
        """Returns the text of a round for prompts of a length."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Text of a source, of at most about `MOST` characters."""

    name: str
    text: str

    @classmethod
    def open(cls, path: Path | None) -> "Source":
        """Reads a source; None is the book in the package.

        Raises:
            UserError: It cannot be read, or is empty.
        """
        read, size = [], 0
        for document in read_documents(path):
            read.append(document)
            if (size := size + len(document)) >= MOST:
                break
        text = "".join(read)
        if not text.strip():
            raise UserError(f"the haystack {name_of(path)} is empty; give one with text")
        return cls(name=name_of(path), text=text)

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def start(self, round: int) -> int:
        """Returns the character at which a round starts: 0, 1/2, 1/4, 3/4, 1/8, ... of the text.

        It is moved to the next sentence. Rounds lie apart evenly however many there are.
        """
        place = int(len(self.text) * van_der_corput(round))
        return self.sentence_after(place) if place else 0

    def sentence_after(self, place: int) -> int:
        """Returns the start of the next sentence, or line or word; 0 if the text ends before."""
        end = place + _end(self.text[place : place + _SENTENCE])
        following = re.compile(r"\S").search(self.text, end)
        return following.start() if following else 0

    def halves(self, place: int) -> tuple["Source", "Source"]:
        """Returns the texts before and after a character."""
        before, after = self.text[:place], self.text[place:]
        return dataclasses.replace(self, text=before), dataclasses.replace(self, text=after)

    def blocks(self, start: int) -> Iterator[str]:
        """Yields the text from a character on, in parts of whole lines, again and again."""
        while True:
            yield from _parts(self.text, start, len(self.text))
            yield from _parts(self.text, 0, start)


def van_der_corput(number: int) -> float:
    """Returns a value of the sequence 0, 1/2, 1/4, 3/4, 1/8, 5/8, ..., which fills [0, 1) evenly.

    J. G. van der Corput, Verteilungsfunktionen, Proc. Ned. Akad. v. Wet. 38 (1935).
    """
    value, unit = 0.0, 0.5
    while number:
        value, unit, number = value + unit * (number & 1), unit / 2, number >> 1
    return value


def _end(text: str) -> int:
    """Returns the first end of a sentence, a line or a word."""
    for pattern, most in ((SENTENCE_END, _SENTENCE), (LINE_END, _LINE)):
        # Not the end of what was cut out here.
        if (found := pattern.search(text)) and found.end() < min(most, len(text)):
            return found.end()
    ends = word_ends(text)
    return int(ends[0]) if len(ends) else 0


def _parts(text: str, start: int, end: int) -> Iterator[str]:
    while start < end:
        stop = _stop(text, start + _BLOCK, end)
        yield text[start:stop]
        start = stop


def _stop(text: str, place: int, end: int) -> int:
    """Returns the next end of a line or of a space, if there is any soon."""
    for between in ("\n", " "):
        if (found := text.find(between, place - 1, place + _BLOCK)) >= 0:
            return min(found + 1, end)
    return min(place, end)


class RoundTexts:
    """Texts that depend on the source, the round and the length, and not on the grid."""

    def __init__(self, source: Source, tokenizer: Tokenizer, *, longest: int):
        """Reads nothing yet.

        Args:
            source: The source.
            tokenizer: Counts the tokens.
            longest: The largest length that will be asked for.
        """
        self.source, self._tokenizer, self._longest = source, tokenizer, longest
        self._read = functools.lru_cache(maxsize=2)(self._read_from)

    def start(self, round: int) -> int:
        """Returns the character of the source at which a round starts."""
        return self.source.start(round)

    def text(self, round: int, length: int) -> Text:
        """Returns the text of a round with at least `length` tokens, repeated if need be."""
        haystack, stops, counts = self._read(self.start(round))
        # The ends of sentences and words near a place depend on what follows it: one part more.
        enough = int(np.searchsorted(counts, length)) + 1
        return Text(haystack.up_to(stops[enough]), 0, len(self.source.text))

    def _read_from(self, start: int) -> tuple[Haystack, list[int], list[int]]:
        """Reads two parts more than the largest length; returns where parts end, and tokens."""
        parts: list[str] = []
        ends: list[np.ndarray] = []
        stops, counts, more = [0], [0], 2
        for part in self.source.blocks(start):
            parts.append(part)
            ends.append(stops[-1] + token_ends(part, self._tokenizer))
            stops.append(stops[-1] + len(part))
            more -= counts[-1] >= self._longest
            counts.append(counts[-1] + len(ends[-1]))
            if more == 0:
                break
        haystack = Haystack.of(self.source.name, "".join(parts), np.concatenate(ends))
        return haystack, stops, counts


class EarlierTexts:
    """Texts by the rule of folders whose grid cannot grow: rounds share the source evenly."""

    def __init__(self, config: NeedleConfig, tokenizer: Tokenizer):
        """Reads as much of the source as the grid needs.

        Raises:
            UserError: It cannot be read, or is empty.
        """
        self._rounds, self._longest = config.rounds, max(config.all_lengths)
        haystack = Haystack.read(
            name_of(config.haystack),
            blocks_of(read_documents(config.haystack)),
            tokenizer,
            most=self._longest * config.rounds,
        )
        self.haystack = haystack.repeated(self._longest) if config.repeat else haystack

    def start(self, round: int) -> int:
        """Returns the character of the text at which a round starts."""
        return self.haystack.start(round, self._rounds, self._longest)

    def text(self, round: int, length: int) -> Text:
        """Returns the whole text, and where a round starts in it."""
        return Text(self.haystack, self.start(round), len(self.haystack.text))
