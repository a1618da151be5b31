"""Those who are told of a run: a person, and other programs."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lwm.model.config import LlamaConfig
from lwm.train.config import to_json
from lwm.train.monitor.console import ConsoleSink
from lwm.train.monitor.trackers import Tracker, TrackerKind, open_tracker


class _Followers:
    """Those who are told of a run: a person, and other programs."""

    def __init__(self, watch: ConsoleSink, open_trackers: Callable[[int], list[Tracker]]):
        self._watch, self._open = watch, open_trackers
        self._trackers: list[Tracker] = []

    def begin(self, last: int) -> None:
        self._trackers = self._open(last)

    def __call__(self, line: dict[str, Any]) -> None:
        self._watch(line)
        for tracker in self._trackers:
            tracker(line)

    def warn(self, text: str) -> None:
        if jax.process_index():
            print(f"process {jax.process_index()}: {text}", file=sys.stderr)
        else:
            self._watch.say(text)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


@contextlib.contextmanager
def open_sinks(
    config: Any,
    folder: Path,
    mesh: Mesh,
    track: tuple[TrackerKind, ...],
    *,
    size: str,
    model: LlamaConfig | None = None,
) -> Iterator[_Followers]:
    """Opens those who follow a run.

    Args:
        config: What decides the run; it has `training` and `mesh`.
        folder: The run's.
        mesh: Its devices.
        track: The other programs.
        size: How large it is, in words.
        model: The language model that is trained, if it is one.
    """

    def open_trackers(last: int) -> list[Tracker]:
        if jax.process_index():
            return []
        return [open_tracker(kind, folder, to_json(config), last=last) for kind in track]

    if jax.process_index() == 0:
        print(f"{size}, mesh {config.mesh}, folder {folder}", file=sys.stderr)
    devices, dtype = list(mesh.devices.flat), config.compute.dtype if model else "float32"
    with ConsoleSink(config.training.steps, model, devices, dtype=dtype) as watch:
        followers = _Followers(watch, open_trackers)
        try:
            yield followers
        finally:
            followers.close()
