"""Curricula: stages of training one after another, each from the weights of the one before.

    runs/NAME/curriculum.json        the stages that are finished
    runs/NAME/01-text-512/           the run of a stage, as any other run
    runs/NAME/02-text-1k/

A stage is a whole run, so that data, context, mesh, layout and schedule may change between stages.
It starts from the saved model of the stage before, which has the type of the weights: nothing is
rounded.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from rich.console import Console

from lwm.errors import UserError
from lwm.files import make_folder, read_versioned, replacing, write_versioned
from lwm.formats.run_folder import CURRICULUM, FROM_STAGE, MODEL, SETTINGS, stage_folder
from lwm.processes import first_alone
from lwm.sharding import make_mesh, require_batch
from lwm.train.config import Curriculum, Run, Stage
from lwm.train.monitor.console import print_line
from lwm.train.monitor.trackers import TrackerKind
from lwm.train.optimizer import build_optimizer
from lwm.train.run import Sample, run
from lwm.train.run_json import require_finite, require_same
from lwm.train.shape import require_model

VERSION = 1
EVALUATIONS = "evaluations"
"""Folder in that of a stage, with a folder for each evaluation."""

Evaluate = Callable[[Path, Path], None]
"""Evaluates a model's folder and writes to another folder; a second call continues the first."""


def run_curriculum(
    config: Curriculum,
    folder: Path,
    *,
    console: Console | None = None,
    track: TrackerKind | Sequence[TrackerKind] = (),
    profile: int = 0,
    evaluations: Mapping[str, Evaluate] | None = None,
    sample: Sample | None = None,
) -> Path:
    """Trains stage after stage, or resumes; returns the path of the last stage's model.

    The same call goes on in the right stage at the right batch. Stages that are finished are not
    opened again.

    Args:
        config: The stages.
        folder: Gets a folder for each stage. The processes of a run share it.
        console: See `run`.
        track: See `run`.
        profile: Number of updates to trace in each stage.
        evaluations: Those that stages name.
        sample: See `run`.

    Raises:
        Stopped: A signal stopped a stage; the same call resumes it.
        UserError: See `run`; or a stage names an unknown evaluation, or any in a run of several
            processes; or one that is finished had other settings.
    """
    console = console or Console(quiet=True)
    known = evaluations or {}
    placed = _placed(config, folder)
    for stage, _, _ in placed:
        _check(stage, known)
    with first_alone() as is_first:
        if is_first:
            make_folder(folder)
    done = _read(folder)
    for stage, place, _ in placed:
        if stage.name in done:
            _require_unchanged(stage, place)
        else:
            _warn_of_mesh(stage, console)
    for number, (stage, place, base) in enumerate(placed, 1):
        title = f"stage {number} of {len(placed)}, {stage.name}"
        if stage.name not in done:
            print_line(console, title)
            run(
                stage.run,
                place,
                console=console,
                track=track,
                profile=profile,
                base=base,
                sample=sample,
            )
            _add(folder, done, stage.name)
        for name in stage.evaluations:
            if name not in done[stage.name]:
                print_line(console, f"{title}: {name}")
                known[name](place / MODEL, place / EVALUATIONS / name)
                _add(folder, done, stage.name, name)
    return placed[-1][1] / MODEL


def _check(stage: Stage, evaluations: Mapping[str, Evaluate]) -> None:
    """Refuses a stage that could not be trained or evaluated, before the first one begins.

    Raises:
        UserError: A setting is not finite or does not fit another, or an evaluation cannot be
            made.
    """
    try:
        require_finite(stage.run)
        require_model(stage.run)
        build_optimizer(stage.run.training.optimizer, stage.run.training.steps)
    except UserError as error:
        raise UserError(f"stage {stage.name}: {error}") from None
    if stage.evaluations and jax.process_count() > 1:
        raise UserError(
            f"stage {stage.name}: evaluations run in one process; leave them out, and run "
            "`lwm eval all` on the stage's model"
        )
    if unknown := [name for name in stage.evaluations if name not in evaluations]:
        raise UserError(
            f"stage {stage.name}: no evaluation is called {unknown[0]!r}; there are "
            f"{', '.join(evaluations) or 'none'}"
        )


def _require_unchanged(stage: Stage, place: Path) -> None:
    """Refuses a finished stage whose settings were others, or are lost.

    Raises:
        UserError: The first differences are named, or the file.
    """
    if not (place / SETTINGS).is_file():
        raise UserError(
            f"stage {stage.name} is finished, but {place / SETTINGS} is missing; restore it, or "
            "give the stages in their former order"
        )
    # The other values of the model are those of its tokenizer, and of what it starts from.
    own = ("model.tokens", "model.max_context", "model.rope", "model.init_std")
    ignore = ("model",) if stage.run.model is None else own
    require_same(stage.run, place / SETTINGS, ignore=ignore, finished=True)


def _warn_of_mesh(stage: Stage, console: Console) -> None:
    """Warns of a mesh that these devices do not have; others may be there when it is due."""
    data = stage.run.data
    try:
        require_batch(make_mesh(stage.run.mesh), rows=data.rows, length=data.packing.length)
    except UserError as error:
        if jax.process_index() == 0:  # the others would repeat it
            print_line(console, f"stage {stage.name} cannot run on these devices: {error}")


def _placed(config: Curriculum, folder: Path) -> list[tuple[Stage, Path, Path | None]]:
    """Returns each stage with its folder, and with the model that it starts from, if that is one
    of the stage before."""
    placed: list[tuple[Stage, Path, Path | None]] = []
    for number, stage in enumerate(config.stages, 1):
        base = None
        if placed:
            before, place, _ = placed[-1]
            base = place / MODEL
            stage = dataclasses.replace(stage, run=_starting_from(stage.run, before.name))
        placed.append((stage, folder / stage_folder(number, stage.name), base))
    return placed


def _starting_from(config: Run, stage: str) -> Run:
    # Not its path: the folder of a curriculum may be moved.
    return dataclasses.replace(config, init=f"{FROM_STAGE}{stage}")


def _read(folder: Path) -> dict[str, list[str]]:
    """Returns the finished stages, each with its finished evaluations."""
    file = folder / CURRICULUM
    if not file.exists():
        return {}
    found = read_versioned(file, VERSION).get("finished")
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged; remove it, and each stage is checked again")
    return found


def _add(folder: Path, done: dict[str, list[str]], *names: str) -> None:
    """Records a stage, or an evaluation of it, as finished."""
    stage, *evaluation = names
    done[stage] = [*done.get(stage, []), *evaluation]
    with first_alone() as is_first:
        if is_first:
            with replacing(folder / CURRICULUM) as partial:
                write_versioned({"finished": done}, partial, VERSION)
