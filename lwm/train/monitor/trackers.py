"""A run's log in other programs: TensorBoard, and Weights & Biases (W&B)."""

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lwm.errors import UserError
from lwm.files import require_package

TrackerKind = Literal["tensorboard", "wandb"]
_LIBRARIES = {"tensorboard": ("tensorboardX", "TensorBoard"), "wandb": ("wandb", "W&B")}

WANDB_ID = "wandb-id"
"""The file in a run's folder that keeps what W&B knows the run by."""


@runtime_checkable
class Tracker(Protocol):
    """Is told each line of the log, and closed at the end."""

    def __call__(self, line: dict[str, Any]) -> None:
        """Takes one line of the log."""

    def close(self) -> None:
        """Writes what is left."""


def require_trackers(kinds: Iterable[TrackerKind]) -> None:
    """Refuses trackers whose packages are missing, and opens none.

    Raises:
        UserError: A package is not installed.
    """
    for kind in kinds:
        _library(kind)


def open_tracker(kind: TrackerKind, folder: Path, run: dict[str, Any], *, last: int = 0) -> Tracker:
    """Opens the record of a run, or goes on with it.

    Numbers are called as in the log: `train/loss`, `train/learning_rate`,
    `held_out/books/text_loss`. TensorBoard's files lie in `tensorboard` in the run's folder; for
    W&B, `WANDB_MODE`, `WANDB_PROJECT` and its other variables are respected.

    Args:
        kind: Whose record.
        folder: The run's, which also names it.
        run: What decides the run, as plain values.
        last: The step that the run goes on after. What a killed run has written of later steps is
            replaced (TensorBoard) or stands (W&B); lines up to it are passed over.

    Raises:
        UserError: The package is not installed, or the service refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    opened = {"tensorboard": TensorBoard, "wandb": WandB}[kind]
    return opened(folder, run, last=last)


class TensorBoard:
    """Writes event files."""

    def __init__(self, folder: Path, run: dict[str, Any], *, last: int):
        library = _library("tensorboard")
        self._last = last
        self._writer = library.SummaryWriter(
            str(folder / "tensorboard"),
            # Tells readers to forget the steps from here on that were written before.
            purge_step=last + 1 if last else 0,
            # Without it, two files begun in one second would be one; readers go by this order.
            filename_suffix=f".{time.time_ns()}",
            flush_secs=30,
        )
        if not last:
            self._writer.add_text("run", f"```json\n{json.dumps(run, indent=2, default=str)}\n```")

    def __call__(self, line: dict[str, Any]) -> None:
        """Takes one line of the log."""
        if line["step"] > self._last:
            for name, value in scalars(line):
                self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandB:
    """Sends to Weights & Biases, or keeps what is to be sent in the folder (WANDB_MODE=offline)."""

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
        # W&B keeps what it has of a step; where it is reached, it knows which is the next.
        self._last = max(last, self._run.step - 1)

    def __call__(self, line: dict[str, Any]) -> None:
        """Takes one line of the log."""
        if line["step"] > self._last:
            self._run.log(dict(scalars(line)), step=line["step"])

    def close(self) -> None:
        """Writes what is left."""
        self._run.finish()


def scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the numbers of a line of the log, by name; what is unknown there is left out."""
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
    """Returns what a file holds, or draws it and writes it there."""
    known = path.read_text().strip() if path.exists() else ""
    if not known:
        known = uuid.uuid4().hex[:12]
        path.write_text(known)
    return known


def _library(kind: TrackerKind) -> Any:
    module, what = _LIBRARIES[kind]
    return require_package(module, what, extra=kind)
