"""Folders of training runs: their settings, and the arrays of their checkpoints."""

import concurrent.futures
import functools
import os
import re
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lwm.errors import UserError
from lwm.files import parse_json, read_json
from lwm.formats.lazy import LazyArrays, require_finite

SETTINGS, CHECKPOINTS, MODEL, TOKENIZER = "run.json", "checkpoints", "model", "tokenizer"
"""A run's settings, and its folders of checkpoints, of the trained model and of the tokenizer."""
CURRICULUM = "curriculum.json"
"""The finished stages of a curriculum, in the folder above those of its stages."""
FROM_STAGE = "stage:"
"""Start of `init` of a stage in `run.json`, before the name of the stage that it starts from."""
CHECKSUMS = "checksums.json"
"""File in each checkpoint: size and CRC-32 of its other files."""
WITH_MODEL = 3
"""The first version of `run.json` with the model that is trained. Before, it was the recipe's:
without the ids of the tokenizer, the context of the rows and all that `init` brings."""


def steps_of(run: Path) -> list[int]:
    """Returns the steps of a run's checkpoints, ascending."""
    places = (run / CHECKPOINTS).glob("[0-9]*")
    return sorted(int(place.name) for place in places if place.name.isdecimal())


def find_in_run(name: str | Path) -> Path | None:
    """Returns the model or the checkpoint that a run's name stands for; None for other names.

    `runs/a` is the trained model, or the newest checkpoint of a run that is not done; `runs/a@300`
    and `runs/a/checkpoints/300` are the checkpoint of step 300. The folder of a curriculum stands
    for the last stage that is finished.

    Raises:
        UserError: The run has no such checkpoint.
    """
    path = Path(name).expanduser()
    if is_checkpoint(path):
        return path
    at = re.fullmatch(r"(.+)@(\d+)", str(path))
    run = Path(at[1]) if at and not os.path.exists(path) else path
    if os.path.isfile(path / CURRICULUM):
        run = path = _last_stage(path)
    if not os.path.isfile(run / SETTINGS):  # unlike Path's, False for names that are too long
        return None
    steps = steps_of(run)
    if run != path and at:
        if int(at[2]) not in steps:
            there = f"; there are {_listed(steps)}" if steps else ", nor any other"
            raise UserError(f"{run} has no checkpoint of step {int(at[2])}{there}")
        return run / CHECKPOINTS / str(int(at[2]))
    last = read_json(run / SETTINGS).get("training", {}).get("steps", 0)
    if (run / MODEL).is_dir() and (not steps or steps[-1] >= last):
        return run / MODEL
    if not steps:
        raise UserError(f"{run} has no checkpoint yet; go on with the run")
    return run / CHECKPOINTS / str(steps[-1])


def _last_stage(folder: Path) -> Path:
    """Returns the folder of the last finished stage of a curriculum."""
    finished = read_json(folder / CURRICULUM).get("finished")
    names = list(finished) if isinstance(finished, dict) else []
    if not names:
        raise UserError(f"{folder} has no finished stage; go on with the curriculum")
    place = folder / stage_folder(len(names), names[-1])
    if not place.is_dir():
        raise UserError(f"{place}, the last finished stage, is missing; restore it")
    return place


def stage_folder(number: int, name: str) -> str:
    """Returns the name of the folder of a stage, counted from 1."""
    return f"{number:02}-{name}"


def base_of_stage(run: Path, init: str) -> str | Path:
    """Returns the model that a run started from: `init` of its settings, or that of a stage."""
    if not init.startswith(FROM_STAGE):
        return init
    run = run.absolute()
    number, _, _ = run.name.partition("-")
    if not number.isdecimal():
        raise UserError(f"{run} is a stage of a curriculum, and its name has lost its number")
    return run.parent / stage_folder(int(number) - 1, init.removeprefix(FROM_STAGE)) / MODEL


def is_checkpoint(path: Path) -> bool:
    """Returns whether a path is the folder of one checkpoint."""
    return path.parent.name == CHECKPOINTS and (path / CHECKSUMS).is_file()


def read_settings(checkpoint: Path) -> dict[str, Any]:
    """Returns the settings of a checkpoint's run.

    Raises:
        UserError: They are missing, damaged, or lack the model.
    """
    file = checkpoint.parents[1] / SETTINGS
    if not file.is_file():
        raise UserError(f"{file} is missing, which says what the checkpoint is of; restore it")
    values = read_json(file)
    version = values.get("version", 1)
    if not isinstance(version, int) or version < WITH_MODEL:
        raise UserError(
            f"{file} is of an earlier version, without the model that was trained; go on with the "
            f"run once, or use {checkpoint.parents[1] / MODEL} when it is done"
        )
    return values


def open_checkpoint(place: Path) -> LazyArrays:
    """Opens the arrays of a checkpoint's model, by their paths in it; optimizer states stay closed.

    The array that was read last stays in memory, since layers of a stack are read one by one.

    Raises:
        UserError: A file is missing or damaged.
    """
    if fault := fault_of(place):
        run = place.parents[1]
        others = [step for step in steps_of(run) if step != int(place.name)]
        hint = f"use another: {run}@{others[-1]}" if others else "restore it from a copy"
        raise UserError(f"{place} is damaged: {fault}; {hint}")
    facts = read_json(place / "data" / "metadata")
    found = {name: re.fullmatch(r"\w+\[([\d,]*)\]", text) for name, text in facts["leaves"].items()}
    shapes = {
        name.removeprefix("model."): tuple(map(int, match[1].split(","))) if match[1] else ()
        for name, match in found.items()
        if match and name.startswith("model.")
    }
    lock = threading.Lock()

    @functools.lru_cache(maxsize=1)
    def last(name: str) -> np.ndarray:
        import orbax.checkpoint as ocp

        name = f"model.{name}"
        wanted = ocp.args.PyTreeRestore(
            item={name: 0},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
            partial_restore=True,
        )
        with ocp.PyTreeCheckpointer() as reader:
            array = reader.restore(place.absolute() / "state", args=wanted)[name]
        require_finite(array, name, place)
        return array

    def read(name: str) -> np.ndarray:
        with lock:
            return last(name)

    return LazyArrays(shapes, read)


def fault_of(place: Path, *, part: int = 0, parts: int = 1) -> str | None:
    """Returns the first fault in a checkpoint's files; None if they are whole.

    Args:
        place: The folder of the checkpoint.
        part: The part of the files to check, one for each process.
        parts: The number of parts.
    """
    try:
        sums = parse_json((place / CHECKSUMS).read_text(encoding="utf-8"))
        names = sorted(sums)[part::parts]
        for name in names:
            if (size := (place / name).stat().st_size) != sums[name][0]:
                return f"{name} has {size} bytes in place of {sums[name][0]}"
        found = checksums([place / name for name in names])
    except OSError as error:
        missing = Path(error.filename or place).relative_to(place)
        return f"{missing} cannot be read: {error.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{CHECKSUMS} is no JSON"
    wrong = [name for name, crc in zip(names, found, strict=True) if crc != sums[name][1]]
    return f"{wrong[0]} has other bytes than were written" if wrong else None


def checksums(files: Sequence[Path]) -> list[int]:
    """Returns the CRC-32 of each file."""
    # It releases the interpreter lock, so threads read as fast as the disk.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(_checksum, files))


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 24):
            crc = zlib.crc32(chunk, crc)
    return crc


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[-5:])) if len(steps) < 6 else f"…, {_listed(steps[-5:])}"
