"""Ends a text before the first of some strings, wherever tokens happen to divide it."""

from collections.abc import Sequence

from lwm.data.tokenizer import TextStream


class StoppingText:
    """Turns ids into text up to the first stop string, holding back what might begin one."""

    def __init__(self, stream: TextStream, stops: Sequence[str] = ()):
        """Starts with no text."""
        self._stream = stream
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False
        """Whether a stop string has been met; what follows it is not returned."""

    def push(self, token: int) -> str:
        """Returns the text that this id completes and that is sure not to begin a stop string."""
        return self._release(self._stream.push(token))

    def finish(self) -> str:
        """Returns what was held back."""
        text = self._release(self._stream.finish()) + ("" if self.is_stopped else self._held)
        self._held = ""
        return text

    def _release(self, more: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + more
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Counts the characters at the end of the text with which the stop string could begin."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
