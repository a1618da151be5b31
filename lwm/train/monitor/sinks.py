"""Log sinks of a run: console and experiment trackers."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from lwm.model.config import LlamaConfig
from lwm.model.lora import num_parameters
from lwm.train.monitor.console import ConsoleSink, print_line
from lwm.train.monitor.trackers import Tracker, TrackerKind, open_tracker
from lwm.train.run_json import to_json


class RunSinks:
    """Sends the lines of a log to a console and to trackers, warnings to the console."""

    def __init__(self, console: ConsoleSink, open_trackers: Callable[[int], list[Tracker]]):
        self._console, self._open = console, open_trackers
        self._trackers: list[Tracker] = []

    def begin(self, last: int) -> None:
        """Opens the trackers; see `LogSink`."""
        self._trackers = self._open(last)

    def __call__(self, line: dict[str, Any]) -> None:
        """Sends a line to all."""
        self._console(line)
        for tracker in self._trackers:
            tracker(line)

    def busy(self, text: str) -> None:
        """Shows what goes on between updates."""
        self._console.busy(text)

    def warn(self, text: str) -> None:
        """Prints a warning of this process."""
        self._console.warn(text)

    def close(self) -> None:
        """Closes the trackers."""
        for tracker in self._trackers:
            tracker.close()


@contextlib.contextmanager
def open_sinks(
    config: Any,
    folder: Path,
    mesh: Mesh,
    track: tuple[TrackerKind, ...],
    *,
    console: Console,
    size: str,
    model: LlamaConfig | None = None,
) -> Iterator[RunSinks]:
    """Opens the sinks of a run.

    Args:
        config: Settings of the run, with `training` and `mesh`.
        folder: Folder of the run.
        mesh: Its devices.
        track: Trackers to log to.
        console: Shows progress and warnings.
        size: Size of the model, in words.
        model: The model, if it is a language model.
    """

    def open_trackers(last: int) -> list[Tracker]:
        if jax.process_index():
            return []
        return [open_tracker(kind, folder, to_json(config), last=last) for kind in track]

    if jax.process_index() == 0:
        print_line(console, f"{size}, mesh {config.mesh}, folder {folder}")
    devices, dtype = list(mesh.devices.flat), config.compute.dtype if model else "float32"
    with ConsoleSink(
        config.training.steps,
        model,
        devices,
        dtype=dtype,
        adapters=num_parameters(model, config.lora) if model else 0,
        console=console,
    ) as shown:
        sinks = RunSinks(shown, open_trackers)
        try:
            yield sinks
        finally:
            sinks.close()
