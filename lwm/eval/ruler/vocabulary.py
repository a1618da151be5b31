"""English words of the package wonderwords, which RULER uses."""

import functools
import hashlib
import importlib.resources
import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple


class Vocabulary(NamedTuple):
    """Sorted lists of words, each word once."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    words: tuple[str, ...]
    """Nouns, adjectives and verbs."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the lists; prompts depend on them."""
        return hashlib.sha256("\n".join(itertools.chain(*self)).encode()).hexdigest()

    def compound(self, generator: random.Random) -> str:
        """Returns a random adjective and noun with a hyphen between them."""
        return f"{generator.choice(self.adjectives)}-{generator.choice(self.nouns)}"

    def distinct(self, generator: random.Random) -> Iterator[str]:
        """Yields all words in random order, then random pairs of adjective and noun, each once."""
        yield from generator.sample(self.words, len(self.words))
        seen = set(self.words)
        while True:
            word = self.compound(generator)
            if word not in seen:
                seen.add(word)
                yield word


@functools.cache
def vocabulary() -> Vocabulary:
    """Reads the lists of words."""
    folder = importlib.resources.files("wonderwords") / "assets"
    nouns, adjectives, verbs = (
        {line.strip() for line in (folder / name).read_text("utf-8").splitlines()} - {""}
        for name in ("nounlist.txt", "adjectivelist.txt", "verblist.txt")
    )
    return Vocabulary(
        nouns=tuple(sorted(nouns)),
        adjectives=tuple(sorted(adjectives)),
        words=tuple(sorted(nouns | adjectives | verbs)),
    )
