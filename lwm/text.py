"""Texts of unknown origin: without lone surrogates, and in one line that is safe in a terminal."""

import re

# Controls move the cursor or recolour the screen, ends of lines forge lines of a log, and marks of
# direction reorder what surrounds them. Joiners of emoji are letters here.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def well_formed(text: str) -> str:
    """Joins surrogate pairs, which JSON may hold, and replaces lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def printable(text: str) -> str:
    """Writes control characters, ends of lines and marks of direction as escapes: one line."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def without_controls(text: str) -> str:
    """Drops control characters other than ends of lines and tabs, so that a terminal obeys none."""
    return _CONTROLS.sub("", text)
