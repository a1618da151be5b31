"""Time spent on the parts of a suite, over all calls."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from lwm.errors import UserError
from lwm.files import parse_json, write_bytes
from lwm.progress import Progress

_EVERY = 10.0
"""Seconds between two writes, so that a kill loses no more."""


class Times:
    """Seconds of each part, in a file that each call adds to."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic):
        """Reads what earlier calls have spent.

        Raises:
            UserError: The file is damaged.
        """
        self._path, self._clock = path, clock
        self.seconds: dict[str, float] = {}
        """Seconds spent so far, by part."""
        if path.exists():
            self.seconds = _read(path)
        self._last = self._written = clock()

    def during(self, part: str, progress: Progress) -> Progress:
        """Returns the callback that also counts the time of a part from now on."""
        self._last = self._clock()

        def counted(done: int, total: int) -> None:
            self.count(part)
            progress(done, total)

        return counted

    def count(self, part: str, *, write: bool = False) -> None:
        """Adds the time since the last call to a part; writes the file now and then."""
        now = self._clock()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
        if write or now - self._written >= _EVERY:
            self._written = now
            rounded = {name: round(spent, 1) for name, spent in self.seconds.items()}
            write_bytes(self._path, (json.dumps({"seconds": rounded}, indent=2) + "\n").encode())


def _read(path: Path) -> dict[str, float]:
    try:
        found = parse_json(path.read_bytes())
        return {str(name): float(spent) for name, spent in found["seconds"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged; remove it") from None
