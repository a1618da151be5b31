"""Reads headers of msgpack values: kind and length, or the value of a number.

The msgpack package cannot skip values, and a file may hold gigabytes of them.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_MAX_VALUES = 3_000_000
"""Limit for a file; the largest number of arrays, each in nested maps, stays below it."""


class FormatError(Exception):
    """The bytes at the cursor are not as the format has them."""


class Cursor:
    """A position in a file; nothing is read beyond its end."""

    def __init__(
        self,
        file: BinaryIO,
        path: Path,
        *,
        start: int = 0,
        end: int | None = None,
        count: Iterator[int] | None = None,
    ):
        """Makes a cursor.

        Args:
            file: The open file.
            path: Its path, for messages.
            start: First position.
            end: End of the last value; None for the end of the file.
            count: Counter of values, shared by the cursors of a file.
        """
        self.path = path
        self.at = start
        self.end = os.fstat(file.fileno()).st_size if end is None else end
        self._file = file
        self._count = itertools.count() if count is None else count

    def peek(self, count: int) -> bytes:
        """Returns the next bytes (fewer at the end) without moving."""
        self._file.seek(self.at)
        return self._file.read(min(count, self.end - self.at))

    def take(self, count: int) -> bytes:
        """Returns the next bytes and moves behind them."""
        taken = self.peek(self._checked(count))
        if len(taken) != count:
            raise FormatError("the file is cut off there")
        self.at += count
        return taken

    def within(self, count: int) -> "Cursor":
        """Skips `count` bytes; returns a cursor over them."""
        start, self.at = self.at, self.at + self._checked(count)
        return Cursor(self._file, self.path, start=start, end=self.at, count=self._count)

    def require_end(self) -> None:
        """Refuses bytes after the last value."""
        if self.at != self.end:
            raise FormatError("there is more after the end of a value")

    def header(self) -> tuple[str, Any]:
        """Reads the kind of the next value, and its length or, for a number, its value."""
        if next(self._count) == _MAX_VALUES:
            raise FormatError(f"there are more than {_MAX_VALUES:,} values")
        byte = self.take(1)[0]
        if byte < 0x80 or byte >= 0xE0:
            return "number", byte if byte < 0x80 else byte - 256
        if byte < 0xA0:
            return "map" if byte < 0x90 else "array", byte & 0x0F
        return ("str", byte & 0x1F) if byte < 0xC0 else self._long_header(byte)

    def _long_header(self, byte: int) -> tuple[str, Any]:
        if byte in (0xC0, 0xC2, 0xC3):
            return "constant", {0xC0: None, 0xC2: False, 0xC3: True}[byte]
        if byte in _LENGTHS:
            kind, width = _LENGTHS[byte]
            length = self._number(width)
            return kind, (self._signed(1), length) if kind == "ext" else length
        if 0xCC <= byte <= 0xD3:  # unsigned, then signed numbers of 1, 2, 4 and 8 bytes
            width = 1 << (byte & 3)
            return "number", self._signed(width) if byte >= 0xD0 else self._number(width)
        if 0xD4 <= byte <= 0xD8:  # extensions of 1, 2, 4, 8 and 16 bytes
            return "ext", (self._signed(1), 1 << (byte - 0xD4))
        if byte in (0xCA, 0xCB):
            self.take(4 if byte == 0xCA else 8)
            return "number", None
        raise FormatError("a byte there is no msgpack")

    def _number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def _signed(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big", signed=True)

    def _checked(self, count: int) -> int:
        if count > self.end - self.at:
            raise FormatError("the file is cut off there")
        return count


_LENGTHS = {
    0xC4: ("bin", 1),
    0xC5: ("bin", 2),
    0xC6: ("bin", 4),
    0xC7: ("ext", 1),
    0xC8: ("ext", 2),
    0xC9: ("ext", 4),
    0xD9: ("str", 1),
    0xDA: ("str", 2),
    0xDB: ("str", 4),
    0xDC: ("array", 2),
    0xDD: ("array", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}
"""Kinds of values whose length follows the first byte, and the width of that length."""
