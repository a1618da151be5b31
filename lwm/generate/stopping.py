"""Ends a text before the first of some strings, wherever tokens happen to divide it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Detokenizer(Protocol):
    """Makes ids text."""

    def push(self, token: int, /) -> str:
        """Returns the text that this id completes."""
        ...

    def finish(self) -> str:
        """Returns what is left."""
        ...


class StoppingText:
    """Turns ids into text up to the first stop string, holding back what might begin one."""

    def __init__(self, stream: Detokenizer, stops: Sequence[str] = ()):
        """Starts with no text."""
        self._stream = stream
        self._stops = tuple(stops)
        self._held = ""
        self.met: str | None = None
        """The stop string that has been met; what follows it is not returned."""

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has been met."""
        return self.met is not None

    def push(self, token: int) -> str:
        """Returns the text that this id completes and that is sure not to begin a stop string."""
        return self.add(self._stream.push(token))

    def release(self) -> str:
        """Returns what was held back, where no more text can follow it."""
        held, self._held = self._held, ""
        return held

    def finish(self) -> str:
        """Returns the rest of the text."""
        return self.add(self._stream.finish()) + self.release()

    def add(self, more: str) -> str:
        """Returns what of some more text is sure not to begin a stop string."""
        if self.is_stopped:
            return ""
        text = self._held + more
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            (at, self.met), self._held = min(found), ""
            return text[:at]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Counts the characters at the end of the text with which the stop string could begin."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
