"""Essays of the needle tasks: a local text with single spaces, repeated where it is short."""

from collections.abc import Iterator
from pathlib import Path

from lwm.eval.needle.haystack import BLOCK, Haystack
from lwm.eval.needle.texts import Source
from lwm.tokenizer.tokenizer import Tokenizer


class Essay(Source):
    """A text whose words have one space after each."""

    @classmethod
    def open(cls, path: Path | None) -> "Essay":
        """Reads a source of haystacks; None is the book in the package.

        Raises:
            UserError: It cannot be read, or is empty.
        """
        source = Source.open(path)
        return cls(name=source.name, text="".join(f"{word} " for word in source.text.split()))

    def haystack(self, tokenizer: Tokenizer, *, least: int) -> Haystack:
        """Returns the text from its start on, repeated until it has at least `least` tokens."""
        return Haystack.read(self.name, self._blocks(), tokenizer, most=least).repeated(least)

    def _blocks(self) -> Iterator[str]:
        start = 0
        while start < len(self.text):
            end = self.text.find(" ", start + BLOCK) + 1 or len(self.text)
            yield self.text[start:end]
            start = end
