"""Reads compiled programs: instructions in the order in which they run."""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[su]8|[su]32|bf16|f16|f32)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Array:
    """Type and shape of an array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return _BYTES[self.dtype] * self.size


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program."""

    name: str
    results: tuple[Array, ...]
    kind: str
    rest: str
    """Its operands and attributes."""


def computations(text: str) -> Iterator[list[Instruction]]:
    """Yields the instructions of each computation."""
    for part in re.split(r"\n(?=\S)", text):
        found = map(_INSTRUCTION.match, part.splitlines()[1:])
        yield [_read(*match.groups()) for match in found if match]


def _read(name: str, results: str, kind: str, rest: str) -> Instruction:
    arrays = (
        Array(dtype, tuple(int(size) for size in shape.split(",") if size))
        for dtype, shape in _ARRAY.findall(results)
    )
    return Instruction(name, tuple(arrays), kind, rest)


def transfers(order: list[Instruction]) -> Iterator[tuple[Instruction, list[Instruction]]]:
    """Yields each start of a transfer around a ring, and all that runs before it has ended."""
    for place, start in enumerate(order):
        if start.kind == "collective-permute-start":
            ended = re.compile(rf"%{re.escape(start.name)}[,)]")
            end = next(
                number
                for number, one in enumerate(order)
                if one.kind == "collective-permute-done" and ended.search(one.rest)
            )
            yield start, order[place + 1 : end]
