"""The recipe `debug`, smaller; run by one of several processes, or imported by a test.

python tests/small_run.py FOLDER MESH VOCABULARY COORDINATOR COUNT INDEX
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import jax

from lwm.data.pack import PackingConfig
from lwm.distributed import Processes, join
from lwm.errors import UserError
from lwm.recipes import debug
from lwm.train.config import AdamW, Keep, Run, Schedule
from lwm.train.run import run


def small(*, mesh: str = "1,1,1,1", vocabulary: int = 300, **training: Any) -> Run:
    """Returns a run of six steps, with what is given changed."""
    settings: dict[str, Any] = {
        "steps": 6,
        "optimizer": AdamW(schedule=Schedule(peak=1e-2, warmup=2)),
        "keep": Keep(every=3),
        "validate_every": 3,
    }
    replace, recipe = dataclasses.replace, debug()
    assert recipe.model is not None
    return replace(
        recipe,
        mesh=mesh,
        model=replace(recipe.model, dim=32, head_dim=8, mlp_dim=64, num_layers=1),
        data=replace(
            recipe.data,
            packing=PackingConfig(length=64),
            rows=4,
            held_out_rows=4,
            vocabulary=vocabulary,
        ),
        training=replace(recipe.training, **settings | training),
    )


if __name__ == "__main__":
    folder, mesh, vocabulary, coordinator, count, index = sys.argv[1:]
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    jax.config.update("jax_platforms", "cpu")
    join(Processes(coordinator=coordinator, count=int(count), index=int(index)))
    try:
        print(run(small(mesh=mesh, vocabulary=int(vocabulary)), Path(folder)))
    except UserError as error:
        print(f"refused: {error}", flush=True)
        sys.exit(2)
