"""Markdown of model cards: tables and blocks of code, from texts that may hold anything."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lwm.text import printable

_LONGEST = 300
_SPECIAL = re.compile(r"[\\`*\[\]<>|&]")


def escaped(text: str) -> str:
    """Returns a text in one line that Markdown shows as it is, also within a table."""
    line = printable(text)
    line = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", line)


def listed(values: Mapping[str, Any]) -> str:
    """Returns settings with their values, without groups of further settings."""
    shown = {
        name.replace("_", " "): f"{value:g}" if isinstance(value, int | float) else str(value)
        for name, value in values.items()
        if not isinstance(value, Mapping)
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def numbers(*values: int) -> str:
    """Returns numbers in a row."""
    return ", ".join(f"{value:,}" for value in values)


def plural(number: int, what: str) -> str:
    """Returns a number with a noun in the singular or the plural."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def code_block(language: str, *lines: str) -> str:
    """Returns a block of code."""
    return "\n".join([f"```{language}", *lines, "```"])


def table(rows: Iterable[tuple[str, str]], *, head: tuple[str, str] = ("", "")) -> str:
    """Returns a table of names and values."""
    return grid([head, *rows])


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; the first row is its head."""
    lines = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    lines.insert(1, f"|{'---|' * len(rows[0])}")
    return "\n".join(lines)


def _cell(text: str) -> str:
    # Our own code spans hold nothing of others.
    return text if re.fullmatch(r"`</?vision>`", text) else escaped(text)
