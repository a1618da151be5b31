"""Limits on files that need much more memory than their size, and the variables that raise them."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lwm.errors import UserError

RECORD_LIMIT, RECORD_BYTES = "LWM_MAX_RECORD", 1 << 28
"""Variable and default of the bytes of a record, or of a text or settings that are read whole."""


def limit(name: str, default: int) -> int:
    """Returns a limit on what is read: that of an environment variable, if it is set.

    Raises:
        UserError: The variable is no positive whole number.
    """
    text = os.environ.get(name, "").strip().replace("_", "")
    if text and not (text.isascii() and text.isdecimal() and int(text)):
        raise UserError(f"{name} is {text!r}, but should be a positive whole number")
    return int(text) if text else default


def require_bounded(path: Path, name: str = RECORD_LIMIT, most: int = RECORD_BYTES) -> None:
    """Refuses a file that is too large to be read whole; of a file with holes, these count.

    Raises:
        UserError: The variable that raises the limit is named.
    """
    size, most = path.stat().st_size, limit(name, most)
    if size > most:
        raise UserError(
            f"{path} has {size:,} bytes, more than the {most:,} that are read at once; divide it, "
            f"or raise {name}"
        )


def places_of_lines(file: BinaryIO, most: int) -> Iterator[tuple[int, int]]:
    """Yields where lines begin and end, which is the same for blank ones; reads `most` at once."""
    start = end = 0
    is_blank = True
    for part in iter(functools.partial(file.readline, most + 1), b""):
        end += len(part)
        is_blank = is_blank and part.isspace()
        if len(part) <= most or part.endswith(b"\n"):
            yield start, start if is_blank else end
            start, is_blank = end, True
    if end > start:
        yield start, start if is_blank else end
