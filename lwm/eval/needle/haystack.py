"""Haystack: the text around a needle, the places where it may be cut, and its token counts."""

import dataclasses
import hashlib
import importlib.resources
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lwm.errors import UserError
from lwm.files import is_data, is_packed, parse_json, require_unpacked
from lwm.tokenizer.tokenizer import Tokenizer

BOOK = "Moby-Dick, chapters 1-3"
JSONL = (".jsonl", ".ndjson", ".json")
"""Endings of files with an object per line, whose field `text` is a document."""
BLOCK = 1 << 16  # characters tokenized at a time
SENTENCE_END = re.compile(
    r"""[.!?…]+["'”’)\]]*(?=\s|$) | [。！？｡．؟۔।॥։።፧။៕᠃]+[」』”’）》]* |
    (?<=\S)(?=\r?\n[^\S\n]*\n)""",
    re.VERBOSE,
)
LINE_END = re.compile(r"(?<=\S)(?=[^\S\n]*\n)")
_LONG_SENTENCE, _LONG_LINE = 150, 20
"""Words of a sentence and of a line within which a needle may stand at the start."""
NEAR = 20
"""Part of the tokens by which a needle may be off its depth, to stand at the end of a sentence."""
_LONG_WORD = 32
"""Characters of a word that is not divided."""
_UNSPACED = (
    *("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH", "FULLWIDTH", "IDEOGRAPHIC", "YI", "TANGUT"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI", "JAVANESE", "BALINESE"),
)
"""First words of the names of characters of scripts without spaces between words."""
_SPACE, _JOINED, _LETTER, _IDEOGRAPH = range(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Haystack:
    """Text with the places where it may be cut."""

    name: str
    text: str
    is_repeated: bool
    """True if the source was too short and is repeated here."""
    token_ends: Int[np.ndarray, " T"]
    """Number of characters up to the end of each token."""
    sentence_ends: Int[np.ndarray, " S"]
    line_ends: Int[np.ndarray, " L"]
    word_ends: Int[np.ndarray, " W"]
    """Also the ends of characters where words are not apart, or very long."""

    @classmethod
    def read(
        cls, name: str, blocks: Iterable[str], tokenizer: Tokenizer, *, most: int
    ) -> "Haystack":
        """Reads blocks of text up to at least `most` tokens, if there are so many.

        Raises:
            UserError: There is no text.
        """
        parts: list[str] = []
        ends: list[np.ndarray] = []
        characters = tokens = 0
        for block in blocks:
            parts.append(block)
            ends.append(characters + token_ends(block, tokenizer))
            characters, tokens = characters + len(block), tokens + len(ends[-1])
            if tokens >= most:
                break
        if not any(map(str.strip, parts)):
            raise UserError(f"the haystack {name} is empty; give one with text")
        return cls.of(name, "".join(parts), np.concatenate(ends))

    @classmethod
    def of(cls, name: str, text: str, ends: Int[np.ndarray, " T"]) -> "Haystack":
        """Finds the places in a text whose tokens are counted."""
        return cls(
            name=name,
            text=text,
            is_repeated=False,
            token_ends=ends,
            sentence_ends=ends_of(SENTENCE_END, text),
            line_ends=ends_of(LINE_END, text),
            word_ends=word_ends(text),
        )

    def repeated(self, least: int) -> "Haystack":
        """Repeats a text that has fewer tokens; others stay as they are."""
        times = max(1, -(-least // self.num_tokens))
        if times == 1:
            return self
        size = len(self.text)
        ends = np.concatenate([turn * size + self.token_ends for turn in range(times)])
        return dataclasses.replace(self.of(self.name, self.text * times, ends), is_repeated=True)

    def up_to(self, place: int) -> "Haystack":
        """Returns the text up to a character, and what ends there or before."""
        if place >= len(self.text):
            return self
        kept = {
            name: ends[: np.searchsorted(ends, place, side="right")]
            for name in ("token_ends", "sentence_ends", "line_ends", "word_ends")
            for ends in (getattr(self, name),)
        }
        return dataclasses.replace(self, text=self.text[:place], **kept)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the text."""
        return len(self.token_ends)

    @property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def tokens_before(self, place: int) -> int:
        """Counts the tokens that end at or before a character."""
        return int(np.searchsorted(self.token_ends, place, side="right"))

    def start(self, round: int, rounds: int, longest: int) -> int:
        """Returns the character at which the part of `longest` tokens of a round starts.

        It follows a sentence if `sentence_at` finds one. Parts are disjoint if the text is long
        enough; else they overlap.
        """
        spare = max(0, self.num_tokens - longest)
        if round == 0 or spare == 0:
            return 0
        end = self.sentence_at(spare * round // (rounds - 1), start=0, near=longest // NEAR)
        following = re.compile(r"\S").search(self.text, end)
        return following.start() if following else end

    def place_after(self, tokens: int) -> int:
        """Returns the character at which the first `tokens` tokens end."""
        return int(self.token_ends[min(tokens, self.num_tokens) - 1]) if tokens > 0 else 0

    def sentence_at(self, tokens: int, *, start: int, near: int = 0) -> int:
        """Returns the last end of a sentence within the first `tokens` tokens; `start` if none.

        Within a very long sentence, or text that has none, it is the end of a line or of a word,
        unless the sentence ends at most `near` tokens before.
        """
        most = self.place_after(tokens)
        for ends, longest in ((self.sentence_ends, _LONG_SENTENCE), (self.line_ends, _LONG_LINE)):
            before, after = _around(ends, most)
            is_short = after and self.words_between(before, after) <= longest
            is_near = before > start and tokens - self.tokens_before(before) <= near
            if is_short or is_near:
                return max(start, before)
        return max(start, _around(self.word_ends, most)[0])

    def words_between(self, start: int, end: int) -> int:
        """Counts the words that end after one place and at or before another."""
        first, last = np.searchsorted(self.word_ends, [start, end], side="right")
        return int(last - first)

    def is_long_after(self, place: int) -> bool:
        """Returns whether the sentence after a place is very long, or has no end."""
        before, after = _around(self.sentence_ends, place)
        return not after or self.words_between(before, after) > _LONG_SENTENCE


def require_readable(source: Path | None, *, least: int, repeat: bool) -> None:
    """Refuses a source that is certainly too short, before a tokenizer is available.

    Raises:
        UserError: It cannot be read, or has fewer bytes than the needed tokens.
    """
    size = 0
    for document in read_documents(source):
        size += len(document.encode())
        if size >= least or (repeat and size):
            return
    raise UserError(
        f"the haystack {name_of(source)} has {size:,} bytes, too few for {least:,} tokens; "
        "give a longer one, lower lengths, or repeat it"
    )


def name_of(source: Path | None) -> str:
    """Returns the name of a source in reports."""
    return BOOK if source is None else source.name


def read_documents(source: Path | None, *, what: str = "haystack") -> Iterator[str]:
    """Yields the texts of JSONL files, each with the end of a paragraph, and the lines of others.

    Args:
        source: A file, or a folder of .txt files; None: the book in the package.
        what: Word for the source in messages.

    Raises:
        UserError: A file cannot be read.
    """
    if source is None:
        source = Path(str(importlib.resources.files("lwm") / "assets" / "moby-dick"))
    files = [source]
    if source.is_dir():
        there = sorted(file for file in source.iterdir() if is_data(file.name))
        for file in there:
            if is_packed(file.name, (".txt",)):
                require_unpacked(file, b"")
        files = [file for file in there if file.suffix.lower() == ".txt"]
    if not files:
        raise UserError(f"{what} {source} holds no .txt file")
    for file in files:
        try:
            with file.open("rb") as packed:
                require_unpacked(file, packed.read(8))
            with file.open(encoding="utf-8-sig") as lines:
                if file.suffix.lower() in JSONL:
                    yield from (f"{text}\n\n" for text in _texts(lines, f"{what} {file}"))
                else:
                    yield from lines
                    yield "\n"
        except FileNotFoundError:
            raise UserError(f"{what} {file} does not exist") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{what} {file} cannot be read as UTF-8 text: {error}") from None


def _texts(lines: Iterator[str], file: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            text = parse_json(line)["text"] if line.strip() else ""
        except (ValueError, TypeError, KeyError):
            text = None
        if not isinstance(text, str):
            raise UserError(f'{file}, line {number}: not a JSON object with a "text"')
        # JSON may hold halves of surrogate pairs, which UTF-8 cannot.
        yield text.encode(errors="replace").decode().strip()


def blocks_of(documents: Iterator[str]) -> Iterator[str]:
    """Joins short documents: a tokenizer is faster on few long texts than on many short ones."""
    held: list[str] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document)
        if size >= BLOCK:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def token_ends(text: str, tokenizer: Tokenizer) -> Int[np.ndarray, " T"]:
    """Returns the number of complete characters at the end of each token of a text."""
    ids = tokenizer.encode(text, special=False)
    if not ids:
        return np.zeros(0, np.int64)
    distinct, places = np.unique(np.asarray(ids, np.int64), return_inverse=True)
    spellings = [tokenizer.backend.spell(token) for token in distinct.tolist()]
    written = b"".join([spellings[place] for place in places])
    if written not in (text.encode(), b" " + text.encode()):
        return np.asarray(tokenizer.backend.ends(text), np.int64)  # a normalizer changes it
    spelled = np.asarray([len(each) for each in spellings])
    letters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (letters >= 0x80) + (letters >= 0x800) + (letters >= 0x10000)
    characters = np.cumsum(widths)
    ends = np.cumsum(spelled[places])
    surplus = ends[-1] - characters[-1]
    return np.searchsorted(characters, ends - surplus, side="right")


def ends_of(pattern: re.Pattern[str], text: str) -> Int[np.ndarray, " P"]:
    """Returns the ends of all matches in a text."""
    return np.unique(np.fromiter((match.end() for match in pattern.finditer(text)), np.int64))


def _around(ends: Int[np.ndarray, " E"], place: int) -> tuple[int, int | None]:
    """Returns the last end at or before a place, 0 if none, and the first one after it."""
    index = int(np.searchsorted(ends, place, side="right"))
    return int(ends[index - 1]) if index else 0, int(ends[index]) if index < len(ends) else None


def word_ends(text: str) -> Int[np.ndarray, " W"]:
    """Returns the ends of words; and of characters, where words are not apart, or very long.

    A character and the marks that belong to it stay together.
    """
    letters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    distinct, places = np.unique(letters, return_inverse=True)
    kinds = np.asarray([_kind(chr(letter)) for letter in distinct.tolist()], np.int8)[places]
    spaces = np.flatnonzero(np.concatenate([[True], kinds == _SPACE, [True]]))
    lengths = np.diff(spaces) - 1  # of the words between spaces, most of them 0 or short
    divided = np.repeat(lengths > _LONG_WORD, lengths + 1)[: len(kinds)]
    after = np.append(kinds[1:], np.int8(_SPACE))
    joiner = letters == 0x200D
    inside = (divided | (kinds == _IDEOGRAPH)) & (after != _JOINED) & ~joiner
    return np.flatnonzero((kinds != _SPACE) & ((after == _SPACE) | inside)) + 1


def _kind(letter: str) -> int:
    if letter.isspace():
        return _SPACE
    # Marks, the zero-width joiner, and the skin tones of emoji.
    if unicodedata.category(letter)[0] == "M" or letter in "\u200d🏻🏼🏽🏾🏿":
        return _JOINED
    script = unicodedata.name(letter, "").partition(" ")[0]
    return _IDEOGRAPH if script in _UNSPACED else _LETTER
