"""Text that appears piece by piece, broken between words at the width of a terminal."""

import re
import shutil
from collections.abc import Callable

_PART = re.compile(r"\n|[^\S\n]+|\S+")


def columns() -> int:
    """Returns the width of the terminal, also after it was resized."""
    return max(1, shutil.get_terminal_size().columns)


class Wrapped:
    """Writes text to a terminal; lines that are too long break between words.

    The last word is held until it is whole. Words longer than a line, as texts without spaces have,
    are left to the terminal to break.
    """

    def __init__(self, write: Callable[[str], object], *, width: Callable[[], int] = columns):
        """Begins at the start of a line."""
        self._write, self._width = write, width
        self._column = 0
        self._space = self._word = ""

    def add(self, text: str) -> None:
        """Writes what is whole of the text so far."""
        for part in _PART.findall(text):
            if part == "\n":
                self._flush()
                self._write("\n")
                self._column, self._space = 0, ""
            elif part.isspace():
                self._flush()
                self._space += part
            else:
                self._word += part

    def end(self) -> None:
        """Writes the last word; a break follows where the line has text."""
        self._flush()
        if self._column:
            self._write("\n")
        self._column, self._space = 0, ""

    def _flush(self) -> None:
        if not self._word:
            return
        from prompt_toolkit.utils import get_cwidth

        space, word = get_cwidth(self._space), get_cwidth(self._word)
        if self._column and self._column + space + word > self._width():
            self._write("\n")
            self._column, self._space, space = 0, "", 0
        self._write(self._space + self._word)
        self._column += space + word
        if self._column > self._width():  # the terminal has broken a long word
            self._column %= self._width()
        self._space = self._word = ""
