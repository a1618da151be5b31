"""Excerpts of books in which numbers are stated and stated again later: text that needs context.

    recalls:train,characters=6000,recalls=6,count=2000

In an excerpt stand lines such as "The special magic Tamiro number is: 4839201.", each of another
name and with a number that occurs in no other excerpt. Each line stands there twice, so that the
second number can be copied, and is a guess without the first. All distances between the two are
about equally frequent, up to the whole excerpt.
"""

import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, SupportsIndex, get_args

from lwm.data.books import fetch_books
from lwm.data.generated import read_name
from lwm.data.sources import Record
from lwm.errors import UserError, require_share
from lwm.files import within
from lwm.world.choices import Choices

RECALLS = "recalls:"
LINE = "The special magic {name} number is: {number}."
QUESTION = "What is the special magic {name} number?"
Form = Literal["text", "chat"]
_PARTS = ("train", "held-out")
_PROBES = 4
"""Records whose content stands for that of a set."""
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallSet:
    """A set of such excerpts, as its name says."""

    books: str
    """Books that the excerpts are of: `train` or `held-out`."""
    count: int = 2000
    characters: int = 1600
    """Characters of an excerpt, without the lines."""
    recalls: int = 4
    """Numbers that are stated twice; 0 for the excerpt alone."""
    apart: float = 0.0
    """Least share of the excerpt between the two statements, from 0 to 1."""
    form: Form = "text"
    """`chat`: the user gives the excerpt and asks for one number, and the assistant answers."""
    seed: int = 0

    @classmethod
    def parse(cls, name: str) -> "RecallSet":
        """Reads a name: `recalls:train` or `recalls:held-out`, then options.

        Raises:
            UserError: There is no such option, or a value is out of range.
        """
        books, values = read_name(name, RECALLS, _PARTS, _OPTIONS)
        if (form := values.get("form", "text")) not in get_args(Form):
            raise UserError(f"{name}: form {form!r} is none of {', '.join(get_args(Form))}")
        try:
            return cls(books=books, **values)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    def __post_init__(self):
        """Refuses values out of range.

        Raises:
            UserError: The value.
        """
        least = 1 if self.form == "chat" else 0
        if min(self.count, self.characters) < 1 or self.recalls < least:
            raise UserError(f"count and characters must be at least 1, recalls at least {least}")
        require_share("apart", self.apart)


_OPTIONS = {
    "count": int,
    "characters": int,
    "recalls": int,
    "apart": float,
    "form": str,
    "seed": int,
}


class Recalls:
    """A source of records, made on access; the same on every machine."""

    def __init__(self, config: RecallSet, *, folder: Path | None = None) -> None:
        """Takes a set.

        Args:
            config: The set.
            folder: Folder with the books as `train/*.txt` and `held-out/*.txt`; by default those
                that are fetched.
        """
        self._config, self._folder = config, folder

    def __len__(self) -> int:
        return self._config.count

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = within(index, len(self))
        config = self._config
        choices = Choices("recalls", config.books, config.seed, index)
        lines = _lines(config.recalls, choices)
        text = self._excerpt(choices)
        if config.form == "chat":
            value = _chat(text, lines, choices)
        else:
            value = {"text": _with_lines(text, lines, config.apart, choices)}
        return Record(value, f"{RECALLS}{config.books}:{index}", index)

    def identity(self) -> list:
        """Returns the settings and a digest of the first records."""
        first = [self[index].value for index in range(min(_PROBES, len(self)))]
        digest = hashlib.sha256(json.dumps(first).encode()).hexdigest()
        return [[RECALLS, dataclasses.asdict(self._config), digest]]

    def files(self) -> list[Path]:
        """Returns the files of the books."""
        folder = (self._folder or fetch_books()) / self._config.books
        return sorted(folder.glob("*.txt"))

    @functools.cached_property
    def _books(self) -> str:
        text = "\n".join(file.read_text(encoding="utf-8") for file in self.files())
        if len(text) < 2 * self._config.characters:
            raise UserError(
                f"the books have {len(text):,} characters, too few for excerpts of "
                f"{self._config.characters:,}"
            )
        return text

    def _excerpt(self, choices: Choices) -> str:
        """Returns whole lines from a random place on."""
        books, size = self._books, self._config.characters
        start = books.rfind("\n", 0, choices.below(len(books) - size) + 1) + 1
        end = books.find("\n", start + size)
        return books[start : end if end > 0 else len(books)].strip("\n")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_books"}


def _lines(count: int, choices: Choices) -> list[dict[str, str]]:
    """Returns names, all different, with their numbers."""
    numbers: dict[str, str] = {}
    while len(numbers) < count:
        syllables = range(choices.between(2, 3))
        name = "".join(choices.choice(_CONSONANTS) + choices.choice(_VOWELS) for _ in syllables)
        numbers[name.capitalize()] = str(choices.between(1_000_000, 9_999_999))
    return [{"name": name, "number": number} for name, number in numbers.items()]


def _with_lines(text: str, lines: list[dict[str, str]], apart: float, choices: Choices) -> str:
    """Puts each line at two random places between those of a text."""
    rows = text.split("\n")
    least = math.ceil(apart * len(rows))
    placed = []
    for line in lines:
        # Two places drawn alone would seldom be far from each other.
        distance = choices.between(least, len(rows))
        first = choices.below(len(rows) + 1 - distance)
        placed += [(first, 0, line), (first + distance, 1, line)]
    # Where both fall on one place, the first is before the second.
    placed.sort(key=lambda each: each[:2], reverse=True)
    for place, _, line in placed:
        rows.insert(place, LINE.format(**line))
    return "\n".join(rows)


def _chat(text: str, lines: list[dict[str, str]], choices: Choices) -> dict[str, Any]:
    rows = text.split("\n")
    for line in lines:
        rows.insert(choices.below(len(rows) + 1), LINE.format(**line))
    asked = choices.choice(lines)
    question = "\n".join([*rows, "", QUESTION.format(**asked)])
    return {
        "messages": [
            {"role": "user", "content": question},
            # The answer restates the key, so that to copy from there on is enough.
            {"role": "assistant", "content": LINE.format(**asked)},
        ]
    }
