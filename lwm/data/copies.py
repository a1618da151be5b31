"""Repeated random ids: a first exercise, in which a small model learns to copy within minutes.

    copies:train,count=6000

Each example is a sequence of random ids of text, two or three times in a row, with the loss on
the repetitions alone. A model that has formed this ("induction heads", Olsson et al. 2022, arXiv
2209.11895) can retrieve from its context; on text alone, small models hardly begin to.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from lwm.data.example import Example
from lwm.data.generated import read_name
from lwm.errors import UserError
from lwm.files import within
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace
from lwm.world.choices import Choices

COPIES = "copies:"
_PARTS = ("train", "held-out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopySet:
    """A set of repeated sequences, as its name says."""

    part: str
    """`train` or `held-out`, which have other sequences."""
    count: int = 6000
    least: int = 8
    """Ids of the shortest sequence."""
    most: int = 48
    """Ids of the longest sequence."""
    ids: int = 512
    """Different ids at most, the first of the vocabulary: of more, each is seen too seldom for
    copying to form soon."""
    seed: int = 0

    @classmethod
    def parse(cls, name: str) -> "CopySet":
        """Reads a name: `copies:train` or `copies:held-out`, then options.

        Raises:
            UserError: There is no such option, or a value is out of range.
        """
        part, values = read_name(name, COPIES, _PARTS, dict.fromkeys(_OPTIONS, int))
        try:
            return cls(part=part, **values)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    def __post_init__(self):
        """Refuses values out of range.

        Raises:
            UserError: The value.
        """
        if min(self.count, self.ids) < 1 or not 1 <= self.least <= self.most:
            raise UserError("count, ids and least must be at least 1, and most not below least")


_OPTIONS = ("count", "least", "most", "ids", "seed")


@dataclasses.dataclass(frozen=True)
class Copies:
    """Examples, made on access; the same on every machine."""

    config: CopySet
    ids: tuple[int, ...]
    """Ids that the sequences are of: those of text without special tokens."""

    @classmethod
    def of(cls, config: CopySet, tokenizer: Tokenizer, tokens: TokenSpace) -> "Copies":
        """Returns the examples of a set for a tokenizer."""
        special = {*tokenizer.backend.special.values(), *tokenizer.backend.added.values()}
        plain = (number for number in range(tokens.text) if number not in special)
        return cls(config, tuple(itertools.islice(plain, config.ids)))

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, number: int, /) -> Example:
        number, config = within(number, len(self)), self.config
        choices = Choices("copies", config.part, config.seed, number)
        size, times = choices.between(config.least, config.most), choices.between(2, 3)
        once = [choices.choice(self.ids) for _ in range(size)]
        mask = np.ones(times * size, bool)
        mask[:size] = False
        return Example(
            ids=np.asarray(times * once, np.int32),
            loss_mask=mask,
            name=f"{COPIES}{config.part}:{number}",
        )

    def files(self) -> list[Path]:
        """Returns no files: nothing is read."""
        return []
