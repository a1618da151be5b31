"""What a person sees while waiting, and how they stop it. All of it goes to stderr."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import numpy as np
from jaxtyping import UInt8
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


class Preview:
    """Shows pictures side by side in a terminal, each in the place of the one before."""

    def __init__(self, count: int):
        """Prepares for so many side by side; where stderr is no terminal, nothing is shown."""
        self._console = Console(stderr=True)
        self._shown: list[np.ndarray | None] = [None] * count
        self._lines = 0

    def __enter__(self) -> "Preview":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, place: int, pixels: UInt8[np.ndarray, "R R 3"]) -> None:
        """Shows a picture in one of the places."""
        if not self._console.is_terminal:
            return
        self._shown[place] = pixels
        blank = np.zeros_like(pixels)
        row = np.concatenate([blank if p is None else p for p in self._shown], axis=1)
        text = half_blocks(row, width=min(self._console.width, 40 * len(self._shown)))
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self._console.file.write(f"{up}{text}\n")
        self._lines = text.count("\n") + 1


def half_blocks(pixels: UInt8[np.ndarray, "H W 3"], *, width: int) -> str:
    """Draws a picture with coloured half blocks: two pixels, one above the other, a character."""
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
