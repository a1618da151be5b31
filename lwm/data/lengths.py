"""Examples of a data set whose lengths are within bounds; the others are passed over."""

import dataclasses
from pathlib import Path

from lwm.data.example import Example
from lwm.data.sources import files_of
from lwm.data.stream import Examples, OutOfBounds


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Examples of at least and at most so many tokens; numbers are those of the whole collection.

    Lengths are known once an example is encoded, so every pass encodes all of them: tokenize large
    sets first.
    """

    examples: Examples
    least: int | None = None
    most: int | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int, /) -> Example:
        """Reads one example.

        Raises:
            OutOfBounds: It is shorter or longer.
            UserError: It is bad.
        """
        example = self.examples[number]
        size = len(example)
        if size < (self.least or 0) or (self.most is not None and size > self.most):
            raise OutOfBounds(f"{example.name} has {size:,} tokens")
        return example

    def files(self) -> list[Path]:
        """Returns the files of the examples."""
        return files_of(self.examples)
