"""The callback by which long work reports how far it is."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Takes the number of units done so far and their total; may raise to stop the work."""

    def __call__(self, done: int, total: int, /) -> None:
        """Reports progress."""
