"""Long texts are encoded in pieces, so that memory is bounded; the ids are those of the whole."""

import functools
import itertools
import json
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lwm.errors import UserError
from lwm.limits import limit

PIECE = 1 << 18
"""Characters of a piece, after which a place to cut is looked for."""
_REACH = 1 << 22
_CONTEXT = 256
_STEP = 1 << 14
_TRIES = 8
# Boundaries of words in most splits of words, the surest first: before a space or the ends of lines
# between two words, after these ends, after the end of a sentence, and between letter and digit.
_PLACES = [
    re.compile(pattern)
    for pattern in (
        r"(?<=[^\W_])(?= [^\W_])",
        r"(?<=[^\s_])(?=\n{1,2}\S)",
        r"(?<=\S\n)(?=\S)|(?<=\S\n\n)(?=\S)",
        r"(?<=[^\s_])(?= [^\s_])",
        r"(?<=[。！？，、.!?,;])(?=\w)",
        r"(?<=[^\W\d_])(?=\d)",
    )
]
# What Unicode's normal forms make of one character; `BertNormalizer` puts spaces around it.
_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12}
_MOST_GROWTH = 1 << 10
_ANYWHERE = re.compile(r"(?<=\S)(?=\S)")


class Piece(NamedTuple):
    """A part of a text that is encoded by itself."""

    start: int
    stop: int
    num_lead: int
    """Ids of its first character, which belongs to the piece before: it is only context."""


def pairs_in(tokens: Iterable[str]) -> frozenset[str]:
    """Returns the pairs of adjacent characters in tokens, whose spaces are written as `▁`."""
    plain = (token.replace("\u2581", " ") for token in tokens)
    return frozenset(token[i : i + 2] for token in plain for i in range(len(token) - 1))


class InPieces:
    """Base of tokenizers; encodes long texts in pieces."""

    growth = 1
    """How many characters the normalizer may make of one."""

    def _ids(self, text: str) -> list[int]:
        """Returns the ids of a text without special tokens."""
        raise NotImplementedError

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the characters of each id, from and up to which it stands."""
        raise NotImplementedError

    @functools.cached_property
    def _inside(self) -> frozenset[str] | None:
        """Pairs of characters in tokens, if tokens may cross words: no text is cut in a pair.

        None: words are split first.
        """
        raise NotImplementedError

    def ends(self, text: str) -> list[int]:
        """Returns the number of complete characters of a text at the end of each of its ids.

        These count characters of the text as given, whatever a normalizer makes of it.
        """
        ends: list[int] = []
        for start, stop, num_lead in self.pieces(text):
            spans = self._spans(text[start:stop])[num_lead:]
            ends += [start + end for end in _complete(spans, stop - start)]
        return ends

    def _ids_of_any(self, text: str) -> list[int]:
        """Returns the ids of a text of any length."""
        ids: list[int] = []
        same: dict[int, int] = {}  # one object per id, where each piece has its own
        for start, stop, num_lead in self.pieces(text):
            found = self._ids(text[start:stop])
            if stop - start == len(text):
                return found
            ids += [same.setdefault(i, i) for i in found[num_lead:]]
        return ids

    def pieces(self, text: str) -> Iterator[Piece]:
        """Divides a text at places where the ids on either side do not depend on the other side.

        A place is taken if the text around it has the same ids in two pieces as in one.

        Raises:
            UserError: There is no such place in a very long part of the text.
        """
        size = max(PIECE // self.growth, 2 * _CONTEXT)
        reach = max(limit("LWM_MAX_WORD", _REACH) // self.growth, size)
        start = num_lead = 0
        while len(text) - start > 2 * size:
            places = range(start + size, min(start + reach, len(text) - _CONTEXT), _STEP)
            found = next(filter(None, (self._place(text, begin) for begin in places)), None)
            if found is None:
                if len(text) - start > reach:
                    raise UserError(
                        f"a text has {len(text):,} characters, and in {reach:,} of them no place "
                        "where the tokenizer surely ends a word: divide it, or raise LWM_MAX_WORD"
                    )
                break
            stop, lead = found
            yield Piece(start, stop, num_lead)
            start, num_lead = stop - 1, lead
        yield Piece(start, len(text), num_lead)

    def _place(self, text: str, begin: int) -> tuple[int, int] | None:
        """Returns a place to cut after `begin`, and the number of ids of the character before."""
        inside = self._inside
        for pattern in _PLACES if inside is None else [*_PLACES, _ANYWHERE]:
            tries = 0
            for found in pattern.finditer(text, begin, begin + _STEP):
                at = found.start()
                if inside is not None and text[at - 1 : at + 1] in inside:
                    continue
                lead = self._ids(text[at - 1])
                if self._parts(text[at - _CONTEXT : at + _CONTEXT], lead):
                    return at, len(lead)
                if (tries := tries + 1) == _TRIES:
                    break
        return None

    def _parts(self, around: str, lead: Sequence[int]) -> bool:
        """Returns whether a text can be cut in the middle, before which `lead` has the last ids."""
        left, right = self._ids(around[:_CONTEXT]), self._ids(around[_CONTEXT - 1 :])
        if right[: len(lead)] != lead or left + right[len(lead) :] != self._ids(around):
            return False
        # Unknown characters on both sides may be one id.
        return _CONTEXT in _complete(self._spans(around), len(around))


def _complete(spans: Sequence[tuple[int, int]], size: int) -> list[int]:
    """Returns where the characters end that are complete after each span of characters.

    Ids that share a character have the same span; all but the last of them complete none.
    """
    starts = [start for start, _ in spans[1:]] + [size]
    ends = [min(end, start) for (_, end), start in zip(spans, starts, strict=True)]
    return list(itertools.accumulate(ends, max))


def growth_of(steps: Iterable[Mapping[str, Any]]) -> int:
    """Returns how many characters the steps of a normalizer may make of one.

    Raises:
        UserError: More than any normalizer of a language needs.
    """
    growth = 1
    for step in steps:
        match step["type"]:
            case "Replace":
                size = len(step["pattern"].get("String", "")) or 1
                growth *= max(1, -(-len(step["content"]) // size))
            case "Prepend":
                growth *= max(1, len(step["prepend"]) // _CONTEXT)
            case "Precompiled":
                table = step["precompiled_charsmap"]
                growth *= _longest_in(table if isinstance(table, bytes) else b64decode(table))
            case kind:
                growth *= _GROWTH.get(kind, 1)
    if growth > (most := limit("LWM_MAX_GROWTH", _MOST_GROWTH)):
        raise UserError(
            f"the tokenizer's normalizer may make {growth:,} characters of one, over {most:,}; "
            "use another tokenizer, or raise LWM_MAX_GROWTH"
        )
    return growth


def _longest_in(table: bytes) -> int:
    """Returns the bytes of the longest text in a SentencePiece table of replacements, at least 1.

    After the size of an index and the index come the texts, each ended by a zero byte.
    """
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=1) or 1


def steps_of(part: Any, inner: str) -> list[dict[str, Any]]:
    """Returns the settings of a decoder or a normalizer, one for each step of a sequence."""
    if part is None:
        return []
    waiting, steps = [json.loads(part.__getstate__())], []
    while waiting:
        step = waiting.pop(0)
        if step["type"] == "Sequence":
            waiting = step[inner] + waiting
        else:
            steps.append(step)
    return steps
