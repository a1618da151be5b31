"""Progress bar, preview images and Ctrl-C in a terminal; all output goes to stderr."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as Bar,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lwm.progress import Progress
from lwm.signals import stop_requests
from lwm.text import printable

_STOPPING = "lwm: stopping after this step; Ctrl-C again stops at once"


@contextlib.contextmanager
def waiting(
    label: str,
    unit: str = "",
    *,
    console: Console | None = None,
    note: Callable[[], str] = str,
) -> Iterator[Progress]:
    """Shows a progress bar until the block ends; yields the callback that updates it.

    Output printed meanwhile stands above the bar only if the same console prints it. `note`
    returns a text beside the bar.
    """
    console = console or Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),  # it may hold a path with brackets
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        _Note(note),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(label), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Note(ProgressColumn):
    def __init__(self, note: Callable[[], str]):
        super().__init__()
        self._note = note

    def render(self, task: Task) -> Text:
        return Text(self._note())


_MOST_SHOWN = 8
"""Images side by side in a terminal, at most."""


class Preview:
    """Shows images side by side in a terminal, above the progress bar if there is one."""

    def __init__(self, count: int):
        """Prepares for `count` images; only a terminal with colours shows them."""
        self.console = Console(stderr=True)
        self._count = count
        self._waiting: dict[int, np.ndarray] = {}

    def show(self, place: int, pixels: UInt8[np.ndarray, "R R 3"]) -> None:
        """Sets the image of one place, and shows them all once they are complete."""
        self._waiting[place] = pixels
        if len(self._waiting) < self._count:
            return
        if self._count > _MOST_SHOWN:
            self._waiting = {}
            return
        row = np.concatenate([self._waiting[each] for each in range(self._count)], axis=1)
        self._waiting = {}
        if self._is_able():
            width = min(self.console.width, 40 * self._count)
            self.console.print(Text.from_ansi(half_blocks(row, width=width)))

    def _is_able(self) -> bool:
        console = self.console
        has_colours = console.color_system is not None and not console.no_color
        return console.is_terminal and has_colours and console.encoding.startswith("utf")


def half_blocks(pixels: UInt8[np.ndarray, "H W 3"], *, width: int) -> str:
    """Renders an image with coloured half blocks, two pixels (upper and lower) per character."""
    high, wide, _ = pixels.shape
    rows = max(2, round(high * width / wide) // 2 * 2)
    down = (np.arange(rows) * high // rows)[:, None]
    small = pixels[down, np.arange(width) * wide // width]
    lines = []
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        blocks = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(upper, lower, strict=True)
        )
        lines.append("".join(blocks) + "\x1b[0m")
    return "\n".join(lines)


class Interruptible:
    """Context in which the first Ctrl-C requests a stop at a safe point, and the second stops."""

    def __enter__(self) -> "Interruptible":
        self._requests = stop_requests(_STOPPING, signal.SIGINT)
        self._request = self._requests.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._requests.__exit__(*error)

    @property
    def requested(self) -> bool:
        """True after a stop was requested."""
        return bool(self._request.signal)

    def check(self) -> None:
        """Stops here if a stop was requested.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self.requested:
            raise KeyboardInterrupt
