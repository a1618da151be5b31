"""Stop strings: ends a text before the first of them, however tokens divide it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lwm.errors import several


@runtime_checkable
class Detokenizer(Protocol):
    """Decodes ids to text."""

    def push(self, token: int, /) -> str:
        """Returns the text that this id completes."""
        ...

    def finish(self) -> str:
        """Returns the rest of the text."""
        ...


class StoppingText:
    """Decodes ids up to the first stop string; holds back text that may begin one."""

    def __init__(self, stream: Detokenizer, stops: Sequence[str] = ()):
        """Starts with no text."""
        self._stream = stream
        self._stops: tuple[str, ...] = several(stops)
        self._held = ""
        self.met: str | None = None
        """The stop string found; text after it is not returned."""

    @property
    def is_stopped(self) -> bool:
        """True if a stop string was found."""
        return self.met is not None

    def push(self, token: int) -> str:
        """Returns the text that an id completes and that cannot begin a stop string."""
        return self.add(self._stream.push(token))

    def release(self) -> str:
        """Returns the text held back, when no more can follow it."""
        held, self._held = self._held, ""
        return held

    def finish(self) -> str:
        """Returns the rest of the text."""
        return self.add(self._stream.finish()) + self.release()

    def add(self, more: str) -> str:
        """Adds text, and returns the part that cannot begin a stop string."""
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
