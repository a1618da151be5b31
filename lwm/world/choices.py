"""Random choices that are the same on every machine and with every version of Python and NumPy."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Choices:
    """Random choices by a name.

    Uses only `Random.random`, the one stream that Python promises not to change.
    """

    def __init__(self, *name: str | int):
        """Starts the choices of a name."""
        digest = hashlib.sha256(repr(name).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big")).random

    def below(self, count: int) -> int:
        """Returns one of 0 to `count` - 1."""
        return int(self._random() * count)

    def between(self, low: int, high: int) -> int:
        """Returns one of `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """Returns True with a probability."""
        return self._random() < probability

    def choice(self, items: Sequence[Item]) -> Item:
        """Returns one of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Returns the items in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in items]
