"""`run.json`: the settings of a run, kept beside its results."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import make_folder, parse_json, replacing
from lwm.formats.run_folder import WITH_MODEL
from lwm.model.config import LoRA
from lwm.renamed import new_setting
from lwm.train.config import Schedule
from lwm.vqgan.config import ADDED

VERSION = 3
"""Of the file; version 1 has no number."""

_NAME = re.compile(r"data\.sets\.\d+\.name")
"""The name of a set in the logs."""
# Settings that may change when a run is resumed; they change numbers by rounding at most.
_FREE = (
    "mesh",
    "compute.remat",
    "compute.mlp_chunk",
    "compute.loss_chunk",
    "training.keep",
    "training.validate_every",
    "data.held_out",
    "data.threads",
    "data.cache",
    "data.max_bad_share",
    "training.sheet",
    "sampling",
)
_STEPS = "training.steps"


def to_json(run: Any) -> dict[str, Any]:
    """Returns all settings of a run as plain values."""
    return json.loads(json.dumps(dataclasses.asdict(run)))


def write_run(run: Any, path: Path) -> None:
    """Writes a run to `path`, whole or not at all, for `require_same` to compare with.

    Raises:
        UserError: The folder cannot be made or written to.
    """
    values = {"version": VERSION} | to_json(run)
    make_folder(path.parent)
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def require_finite(run: Any) -> None:
    """Refuses settings that are not finite; an infinite `clip` is none.

    Raises:
        UserError: The first of them is named.
    """
    for name, value in settings(run).items():
        for each in value if isinstance(value, list) else [value]:
            unlimited = name == "training.optimizer.clip" and each == math.inf
            if isinstance(each, float) and not math.isfinite(each) and not unlimited:
                raise UserError(f"{name} is {each}; give a finite number")


def require_same(
    run: Any,
    path: Path,
    *,
    ignore: tuple[str, ...] = (),
    reached: int = 0,
    finished: bool = False,
) -> None:
    """Refuses a run with other settings than those in a `run.json`.

    The number of steps may change as long as no step that was made would have had another learning
    rate.

    Args:
        run: The settings.
        path: The file.
        ignore: Beginnings of dotted paths that are not compared.
        reached: Step of the run's last checkpoint.
        finished: Whether the run is over, so that the number of steps is fixed.

    Raises:
        UserError: The runs differ; the first differences are named.
    """
    now = _resolve_streams(settings(run))
    before = read_run(path, known=now)
    differing = {
        name: f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
        and not name.startswith((*_FREE, *ignore))
        and not _NAME.fullmatch(name)
    }
    if _STEPS in differing and isinstance(steps := before.get(_STEPS), int):
        fault = "it is finished"
        if not finished:
            now_steps = run.training.steps
            fault = _steps_fault(run.training.optimizer.schedule, steps, now_steps, reached)
        if fault is None:
            del differing[_STEPS]
        else:
            differing[_STEPS] += f" ({fault})"
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{path.parent} holds another run: {'; '.join([*differing.values()][:3])}{more}; give "
            "the same settings to go on with it, or another folder with --out"
        )


def _steps_fault(schedule: Schedule, before: int, now: int, reached: int) -> str | None:
    """Returns why a run cannot go on with another number of steps; None if it can."""
    if now < reached:
        return f"step {reached} is made already"
    if schedule.shape == "cosine":
        return "a cosine depends on its last step from the first; constant and wsd can go on"
    if schedule.shape == "wsd" and min(before, now) - schedule.decay < reached:
        first = min(before, now) - schedule.decay + 1
        return f"its learning rate decays from step {first}, and step {reached} is made"
    return None


def read_run(path: Path, *, known: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the settings of a run by dotted path; those of older versions get their new names.

    Args:
        path: A `run.json`.
        known: The settings that a run of this kind has now; those of the model stand for what an
            older version kept wrong.

    Raises:
        UserError: The file is damaged, or written by a newer version.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        version = int(values.pop("version", 1))
    except (ValueError, OverflowError, AttributeError, TypeError):
        raise UserError(f"{path} is damaged; restore it, or choose another folder") from None
    if version > VERSION:
        raise UserError(
            f"{path} has version {version}, and this lwm reads up to {VERSION}; update lwm, or "
            "choose another folder with --out"
        )
    found = {new_setting(name, known): value for name, value in _leaves(values).items()}
    # Settings that older runs lack, as they were then.
    added = {f"model.{name}": value for name, value in ADDED.items()}
    added["training.optimizer.schedule.start"] = 0.0
    added |= {f"lora.{name}": value for name, value in settings(LoRA()).items()}
    found = {name: value for name, value in added.items() if name in known} | found
    _resolve_streams(found)
    if version < WITH_MODEL:
        wrong = ("model",) if found.get("init") else ("model.tokens", "model.max_context")
        found = {name: value for name, value in found.items() if not name.startswith(wrong)}
        found |= {name: value for name, value in known.items() if name.startswith(wrong)}
    return found


def _resolve_streams(values: dict[str, Any]) -> dict[str, Any]:
    """Replaces 0 streams, as many as rows, by their number, so that both are the same run."""
    if values.get("data.streams") == 0:
        values["data.streams"] = values["data.rows"]
    return values


def settings(run: Any) -> dict[str, Any]:
    """Returns the settings of a run by dotted path, such as `training.optimizer.clip`."""
    return _leaves(to_json(run))


def _leaves(values: Any, name: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        items = enumerate(values)
    else:
        return {name: values}
    found = {}
    for key, value in items:
        found |= _leaves(value, f"{name}.{key}" if name else str(key))
    return found
