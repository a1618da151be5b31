"""Essays of the needle tasks: a local text with single spaces, repeated where it is short."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lwm.errors import UserError
from lwm.eval.needle.haystack import (
    SENTENCE_END,
    Haystack,
    ends_of,
    name_of,
    read_documents,
    token_ends,
    word_ends,
)
from lwm.tokenizer.tokenizer import Tokenizer

MOST = 1 << 26
"""Characters of a source, of which no more are read, so that it has a known length."""
_BLOCK = 1 << 16
"""Characters that are tokenized at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Essay:
    """A text whose words have one space after each."""

    name: str
    text: str

    @classmethod
    def open(cls, source: Path | None) -> "Essay":
        """Reads a source; None is the book in the package.

        Raises:
            UserError: It cannot be read, or is empty.
        """
        parts, size = [], 0
        for document in read_documents(source):
            parts.append("".join(f"{word} " for word in document.split()))
            if (size := size + len(parts[-1])) >= MOST:
                break
        if not size:
            raise UserError(f"the haystack {name_of(source)} is empty; give one with text")
        return cls(name=name_of(source), text="".join(parts))

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def haystack(self, tokenizer: Tokenizer, *, least: int) -> Haystack:
        """Returns the text from its start on, repeated until it has at least `least` tokens."""
        parts: list[str] = []
        ends: list[np.ndarray] = []
        characters = tokens = 0
        for block in self._blocks():
            parts.append(block)
            ends.append(characters + token_ends(block, tokenizer))
            characters, tokens = characters + len(block), tokens + len(ends[-1])
            if tokens >= least:
                break
        times = max(1, -(-least // tokens))
        text = "".join(parts) * times
        return Haystack(
            name=self.name,
            text=text,
            is_repeated=times > 1,
            token_ends=np.concatenate(
                [turn * characters + end for turn in range(times) for end in ends]
            ),
            sentence_ends=ends_of(SENTENCE_END, text),
            line_ends=np.zeros(0, np.int64),
            word_ends=word_ends(text),
        )

    def _blocks(self) -> Iterator[str]:
        start = 0
        while start < len(self.text):
            end = self.text.find(" ", start + _BLOCK) + 1 or len(self.text)
            yield self.text[start:end]
            start = end
