"""Repeated random ids: an exercise in copying, before a small model is to retrieve from text.

    copies:train,count=6000

Each example is a sequence of random ids of text, two or three times in a row, with the loss on
the repetitions alone. Some sequences have few different ids, so that it takes several of them to
know where to go on. A model that copies can retrieve ("induction heads", Olsson et al. 2022, arXiv
2209.11895).
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
_FEWEST = 8
"""Different ids of a sequence, at most: this number, or as often twice, four times as many, and
so on up to all."""


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
    """Different ids at most, the first of the vocabulary: of more, each is seen seldom."""
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
        few = self._few(choices)
        once = [choices.choice(few) for _ in range(size)]
        mask = np.ones(times * size, bool)
        mask[:size] = False
        return Example(
            ids=np.asarray(times * once, np.int32),
            loss_mask=mask,
            name=f"{COPIES}{config.part}:{number}",
        )

    def _few(self, choices: Choices) -> list[int]:
        """Returns the ids of a sequence: of few, it takes several to know where one goes on."""
        doublings = max(1, len(self.ids) // _FEWEST).bit_length()
        return [choices.choice(self.ids) for _ in range(_FEWEST << choices.below(doublings))]

    def files(self) -> list[Path]:
        """Returns no files: nothing is read."""
        return []
