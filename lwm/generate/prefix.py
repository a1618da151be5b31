"""Reuse of a prompt's prefix: which ids a session holds, and in which slots."""

from collections.abc import Sequence

import numpy as np

from lwm.generate.engine import Session
from lwm.progress import Progress


class Prefix:
    """The ids that a session of one row holds; a new prompt is read from where it differs."""

    def __init__(self):
        """Starts without an id."""
        self.ids: list[int] = []
        self._ends: list[int] = []  # the slot after each id; padding makes it run ahead

    def match(self, ids: Sequence[int], *, multiple: int = 1) -> int:
        """Counts the leading ids that need not be read again.

        Args:
            ids: The new prompt, whose last id is always read, since the answer follows it.
            multiple: Divides the count.
        """
        length = min(len(self.ids), len(ids) - 1)
        differs = np.asarray(self.ids[:length]) != np.asarray(ids[:length])
        count = int(np.argmax(differs)) if differs.any() else length
        return count // multiple * multiple

    def end(self, count: int) -> int:
        """Returns the slot after the first `count` ids."""
        return self._ends[count - 1] if count else 0

    def rewind(self, session: Session, count: int) -> None:
        """Keeps the first `count` ids only."""
        session.rewind(self.end(count))
        del self.ids[count:], self._ends[count:]

    def read(
        self,
        session: Session,
        ids: Sequence[int],
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Reads more ids into the session."""
        session.read([ids], progress=progress)
        self.add(session, ids)

    def add(self, session: Session, ids: Sequence[int]) -> None:
        """Notes that the session's last slots hold these ids."""
        end = session.length + 1
        self.ids += ids
        self._ends += range(end - len(ids), end)
