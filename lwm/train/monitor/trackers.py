"""Experiment trackers: TensorBoard, and Weights & Biases (W&B)."""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lwm.errors import UserError
from lwm.files import require_package, writing

TrackerKind = Literal["tensorboard", "wandb"]
_LIBRARIES = {"tensorboard": ("tensorboardX", "TensorBoard"), "wandb": ("wandb", "W&B")}

WANDB_ID = "wandb-id"
"""File in a run's folder that holds its id in W&B."""


@runtime_checkable
class Tracker(Protocol):
    """Receives each line of the log; closed at the end."""

    def __call__(self, line: dict[str, Any]) -> None:
        """Records one line of the log."""

    def close(self) -> None:
        """Writes all that is pending."""


def require_trackers(kinds: Iterable[TrackerKind]) -> None:
    """Refuses trackers whose packages are missing, and opens none.

    Raises:
        UserError: A package is not installed.
    """
    for kind in kinds:
        _library(kind)


def open_tracker(kind: TrackerKind, folder: Path, run: dict[str, Any], *, last: int = 0) -> Tracker:
    """Opens the record of a run, or resumes it.

    Tags are named as in the log: `train/loss`, `train/learning_rate`,
    `held_out/books/text_loss`. TensorBoard's files lie in `tensorboard` in the run's folder; for
    W&B, `WANDB_MODE`, `WANDB_PROJECT` and its other variables are respected.

    Args:
        kind: The tracker.
        folder: Folder of the run, which also names it.
        run: Settings of the run, as plain values.
        last: Last step of the checkpoint that the run resumes from. Later steps that a killed run
            has recorded are replaced (TensorBoard) or kept (W&B); lines up to it are ignored.

    Raises:
        UserError: The package is not installed, or the service refuses.
    """
    opened = {"tensorboard": TensorBoard, "wandb": WandB}[kind]
    with writing(folder / kind):
        folder.mkdir(parents=True, exist_ok=True)
        return opened(folder, run, last=last)


class TensorBoard:
    """Writes event files."""

    def __init__(self, folder: Path, run: dict[str, Any], *, last: int):
        library = _library("tensorboard")
        self._last, self._place = last, folder / "tensorboard"
        self._writer = library.SummaryWriter(
            str(self._place),
            # Readers drop earlier records of this step and later ones.
            purge_step=last + 1 if last else 0,
            # Two files begun in one second would share a name; readers sort by it.
            filename_suffix=f".{time.time_ns()}",
            flush_secs=30,
        )
        events = self._writer.file_writer.event_writer
        self._records = _Records(events._ev_writer)
        events._ev_writer = events._worker._record_writer = self._records
        if not last:
            self._writer.add_text("run", f"```json\n{json.dumps(run, indent=2, default=str)}\n```")

    def __call__(self, line: dict[str, Any]) -> None:
        """Records one line of the log."""
        if line["step"] > self._last:
            for name, value in scalars(line):
                self._writer.add_scalar(name, value, line["step"])
            self._require_written()

    def close(self) -> None:
        """Writes all that is pending."""
        self._writer.close()
        if sys.exc_info()[0] is None:  # an error of the run says more
            self._require_written()

    def _require_written(self) -> None:
        if self._records.failure is not None:
            with writing(self._place):
                raise self._records.failure


class _Records:
    """Writes to an event file. At an error the library's thread would end, and the run wait for it
    once its queue is full; so errors are kept for the run."""

    failure: OSError | None = None

    def __init__(self, writer: Any):
        self._writer = writer

    def write_event(self, event: Any) -> None:
        self._do(self._writer.write_event, event)

    def flush(self) -> None:
        self._do(self._writer.flush)

    def close(self) -> None:
        self._do(self._writer.close)

    def _do(self, act: Callable[..., object], *event: Any) -> None:
        try:
            act(*event)
        except OSError as error:
            self.failure = error


class WandB:
    """Logs to Weights & Biases, or to the folder to be sent later (WANDB_MODE=offline)."""

    def __init__(self, folder: Path, run: dict[str, Any], *, last: int):
        library = _library("wandb")
        try:
            self._run = library.init(
                project=os.environ.get("WANDB_PROJECT", "lwm"),
                name=os.environ.get("WANDB_NAME", folder.absolute().name),
                id=_stable_id(folder / WANDB_ID),
                resume="allow",
                dir=str(folder),
                config=run,
            )
        except library.Error as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f"W&B: {reason}; WANDB_MODE=offline keeps the record in {folder}"
            ) from None
        # W&B keeps the first record of a step; online, it knows the next one.
        self._last = max(last, self._run.step - 1)

    def __call__(self, line: dict[str, Any]) -> None:
        """Records one line of the log."""
        if line["step"] > self._last:
            self._run.log(dict(scalars(line)), step=line["step"])

    def close(self) -> None:
        """Writes all that is pending."""
        self._run.finish()


def scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields tags and numbers of a line of the log, without unknown ones."""
    rest = {key: value for key, value in line.items() if key not in ("step", "held_out")}
    yield from _numbers("train", rest)
    yield from _numbers("held_out", line.get("held_out", {}))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _numbers(f"{name}/{key}", each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def _stable_id(path: Path) -> str:
    """Returns the id in a file, or writes a new random one."""
    known = path.read_text().strip() if path.exists() else ""
    if not known:
        known = uuid.uuid4().hex[:12]
        path.write_text(known)
    return known


def _library(kind: TrackerKind) -> Any:
    module, what = _LIBRARIES[kind]
    return require_package(module, what, extra=kind)
