"""Warnings of examples that a run leaves out, drops or splits."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

_FEWEST = 10
"""Examples of one reason that are worth a line of their own; then ten times as many, and so on."""


class DataWarnings:
    """Warns once of examples for each reason, and again as there are ten times as many."""

    def __init__(self, warn: Callable[[str], None]):
        """Takes the function that prints a warning."""
        self._warn = warn
        self._seen: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def report(self, given: Sequence[Any]) -> None:
        """Names bad examples; reports once that long ones are dropped or split.

        Args:
            given: What a loader has `Delivered`.
        """
        for one in given:
            for fault in one.faults:
                self._count(fault)
        read = given[-1].read
        for what, text in (
            ("dropped", "some examples are longer than a row, or have no target, and are dropped"),
            ("split", "some examples are longer than a row and are split"),
        ):
            if read[what] and what not in self._seen:
                self._seen.add(what)
                self._warn(f"{text}; the log counts them")

    def _count(self, fault: str) -> None:
        """Counts an example by its reason, which follows its place."""
        reason = re.sub(r"\d+", "0", fault.partition(": ")[2] or fault)
        self._counts[reason] += 1
        count, first = self._counts[reason], self._first.setdefault(reason, fault)
        if count == 1:
            self._warn(f"left out: {fault}")
        elif count >= _FEWEST and str(count).strip("0") == "1":
            self._warn(f"left out: {count:,} examples so far like the first, {first}")
