"""The exception for mistakes of users, and small checks of what they give."""

import errno
import os
import re
from typing import Any

_LONGEST = 2000


class UserError(Exception):
    """A mistake that the user can correct: one clear line that names the remedy."""

    def __str__(self) -> str:
        """Returns the message; a very long line, such as a value of a file, is cut inside."""
        return "\n".join(map(_cut, super().__str__().split("\n")))


def _cut(line: str) -> str:
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"


def is_panic(error: BaseException) -> bool:
    """Returns whether Rust code of a library failed by a panic, which is no Exception."""
    return type(error).__name__ == "PanicException"


def require_share(name: str, value: float) -> None:
    """Refuses a share outside [0, 1].

    Raises:
        UserError: The share, by its name.
    """
    if not 0 <= value <= 1:
        raise UserError(f"{name} {value} must be from 0 to 1")


def several(values: Any) -> tuple[Any, ...]:
    """Returns a sequence as a tuple; a single text or path is one item, and None is no item."""
    if values is None:
        return ()
    return (values,) if isinstance(values, str | os.PathLike) else tuple(values)


def is_full_disk(error: BaseException | None) -> bool:
    """Returns whether an exception, or one of its causes, means a full disk or quota.

    Compares the system's messages: safetensors and tensorstore pass on nothing else.
    """
    words = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)]
    while error is not None:
        if any(each in str(error) for each in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def system_reason(error: BaseException | None) -> str | None:
    """Returns what the system says of a failed read or write; None for faults of another kind.

    safetensors and tensorstore pass on the number of the error, in their texts.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if found := re.search(r"os[_ ]error(?:_code)?[ =']+(\d+)", str(error)):
            return os.strerror(int(found[1]))
        error = error.__cause__ or error.__context__
    return None
