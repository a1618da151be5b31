"""A small curriculum of three stages, to be killed; also imported by a test.

python tests/curriculum_run.py FOLDER [WHERE]

WHERE is STAGE@STEP, to be killed after that step of a stage, or STAGE, once its model is saved.
"""

import dataclasses
import os
import runpy
import signal
import sys
from pathlib import Path

from lwm.data.pack import PackingConfig
from lwm.train import curriculum as curricula, loop
from lwm.train.config import Curriculum, Keep, Run, Stage
from lwm.train.curriculum import run_curriculum

replace = dataclasses.replace
small = runpy.run_path(str(Path(__file__).with_name("small_run.py")))["small"]


def curriculum() -> Curriculum:
    """Returns stages that differ in rows, context, theta and layout."""
    first = small(steps=4, keep=Keep(every=2))
    data = replace(first.data, held_out=())
    first = replace(first, model=replace(first.model, max_context=64), data=data)
    return Curriculum(
        stages=(
            Stage(name="first", run=first),
            Stage(name="again", run=later(first), evaluations=("count",)),
            Stage(name="long", run=longer(later(first))),
        )
    )


def later(first: Run) -> Run:
    """Returns settings that start from another model."""
    return replace(first, model=None, data=replace(first.data, vocabulary=0, streams=2))


def longer(run: Run) -> Run:
    """Returns settings with rows of twice the length, and half as many of them at a time."""
    data = replace(run.data, packing=PackingConfig(length=128), rows=2)
    training = replace(run.training, layout="contiguous", accumulate=2)
    return replace(run, data=data, training=training, context=128, stretch="lwm")


def kill_at(where: str) -> None:
    """Makes this process kill itself after a step of a stage, or once its model is saved."""
    stage, _, step = where.partition("@")
    write, run = loop.Log.write, curricula.run

    def written(log, line):
        write(log, line)
        if log._path.parent.name.endswith(stage) and line["step"] == int(step or 0):
            os.kill(os.getpid(), signal.SIGKILL)

    def ended(config, place, **given):
        model = run(config, place, **given)
        if place.name.endswith(stage):
            os.kill(os.getpid(), signal.SIGKILL)
        return model

    setattr(loop.Log, "write", written)  # noqa: B010
    if not step:
        setattr(curricula, "run", ended)  # noqa: B010


if __name__ == "__main__":
    folder, *where = sys.argv[1:]
    if where:
        kill_at(*where)
    run_curriculum(curriculum(), Path(folder), evaluations={"count": lambda model, out: None})
