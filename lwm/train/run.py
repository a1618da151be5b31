"""Training runs from start to end: settings are checked, tasks opened, models trained and saved."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from lwm.convert.folder import require_ours
from lwm.convert.lora import require_own_adapter
from lwm.errors import UserError, several
from lwm.files import exclusive
from lwm.formats.run_folder import MODEL, SETTINGS, steps_of
from lwm.model.llama import Llama
from lwm.processes import all_or_none, first_alone
from lwm.sharding import make_mesh
from lwm.train.config import Run
from lwm.train.inputs import keep_inputs
from lwm.train.loop import OpenTask, train
from lwm.train.monitor.console import print_line
from lwm.train.monitor.sinks import open_sinks
from lwm.train.monitor.trackers import TrackerKind, require_trackers
from lwm.train.optimizer import build_optimizer
from lwm.train.run_json import require_finite, require_same, write_run
from lwm.train.vqgan.config import VQGANRun

Sample = Callable[[Path, Run, int, Llama], None]
"""Takes the folder of a run, its settings, the number of the update, and the model."""


def run(
    config: Run | VQGANRun,
    folder: Path,
    *,
    console: Console | None = None,
    track: TrackerKind | Sequence[TrackerKind] = (),
    profile: int = 0,
    base: Path | None = None,
    sample: Sample | None = None,
) -> Path:
    """Trains a language model or a VQGAN, or resumes the run in `folder`; returns the model's path.

    Args:
        config: All settings of the run; `run.json` in the folder keeps them.
        folder: Gets everything. The processes of a run share it.
        console: Shows progress and warnings; by default nothing is shown.
        track: Experiment trackers to log to.
        profile: Number of updates to trace.
        base: The language model to start from, where `config.init` is no name that can be opened.
        sample: Called with a language model at each validation, in a run of one process; it does
            not change the training.

    Raises:
        Stopped: A signal stopped the run; the same call resumes it.
        UserError: A file is missing, something does not fit, another run is at work in the folder,
            or training failed.
    """
    require_finite(config)
    with contextlib.ExitStack() as lock:
        # Of the processes of one run, the first one keeps other runs away.
        with first_alone() as is_first:
            if is_first:
                lock.enter_context(exclusive(folder))
        quiet = console or Console(quiet=True)
        return _run(config, folder, quiet, several(track), profile, base, sample)


def _run(
    config: Run | VQGANRun,
    folder: Path,
    console: Console,
    track: tuple[TrackerKind, ...],
    profile: int,
    base: Path | None,
    sample: Sample | None,
) -> Path:
    place, model = folder / SETTINGS, folder / MODEL
    with all_or_none():
        resumed = place.exists()
        reached = max(steps_of(folder), default=0)
        if resumed:
            require_same(config, place, ignore=("model",), reached=reached)
        elif reached:
            raise UserError(
                f"{folder} holds checkpoints but no {place.name} with their settings; restore it, "
                "remove the checkpoints, or choose another folder with --out"
            )
        require_trackers(track)
        if isinstance(config, Run):  # a VQGAN is written among other files, which stay
            (require_own_adapter if config.lora.rank else require_ours)(model)
        if not resumed and model.is_dir() and any(model.iterdir()):
            raise UserError(
                f"{model} holds a model of another run, which would be lost; move it, or choose "
                "another folder with --out"
            )
        build_optimizer(config.training.optimizer, config.training.steps)
        mesh = make_mesh(config.mesh)
        opened = _open(config, folder, mesh, console, base, sample, resumed=resumed)
        # The model that is trained, which may be another than the recipe's.
        made = (
            dataclasses.replace(config, model=opened.model) if isinstance(config, Run) else config
        )
        if resumed:
            require_same(made, place, reached=reached)
    # Only now, so that a refused run can be corrected and tried again in the same folder.
    with first_alone() as is_first:
        if is_first:
            keep_inputs(opened.inputs, folder, resumed=resumed)
            write_run(made, place)
    size = f"{_num_parameters(opened, mesh):,} parameters, {opened.units}"
    with open_sinks(
        config, folder, mesh, track, console=console, size=size, model=opened.model
    ) as sink:
        state = train(config.training, opened.task, mesh, folder, sink=sink, profile=profile)
    with jax.set_mesh(mesh):
        opened.save(state, model)
    return model


def _open(
    config: Run | VQGANRun,
    folder: Path,
    mesh: Mesh,
    console: Console,
    base: Path | None,
    sample: Sample | None,
    *,
    resumed: bool,
) -> OpenTask:
    def warn(text: str) -> None:
        if jax.process_index() == 0:  # the others would repeat it
            print_line(console, text)

    # Imported by need: a VQGAN needs no tokenizer, and a language model no images.
    if isinstance(config, Run):
        from lwm.train.task import open_task

        after = None if sample is None else functools.partial(sample, folder, config)
        return open_task(config, folder, mesh, warn=warn, resumed=resumed, base=base, after=after)
    from lwm.train.vqgan.task import open_vqgan_task

    return open_vqgan_task(config, folder, mesh, warn=warn)


def _num_parameters(opened: OpenTask, mesh: Mesh) -> int:
    with jax.set_mesh(mesh):
        model = jax.eval_shape(opened.task.abstract).model
    return sum(leaf.size for leaf in jax.tree.leaves(model))
