"""What a person sees while waiting, and how they stop it. All of it goes to stderr."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

Report = Callable[[int, int], None]


@contextlib.contextmanager
def waiting(what: str, unit: str = "") -> Iterator[Report]:
    """Shows a bar that goes away at the end; yields a function to tell it (done, total)."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Interruptible:
    """Within it, the first Ctrl-C only asks to stop at the next safe point; the second stops."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> "Interruptible":
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Stops here if that was asked for.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self.asked:
            raise KeyboardInterrupt
