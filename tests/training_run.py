"""A small run of training, to be killed; prints each step as it is made. Also imported by a test.

python tests/training_run.py FOLDER STEPS [MESH [COORDINATOR COUNT INDEX]]
"""

import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np

from lwm.convert.export import on_host
from lwm.data.example import Example
from lwm.data.loader import Loader
from lwm.data.pack import PackingConfig
from lwm.data.stream import Mixture
from lwm.distributed import Processes, end_alone, join
from lwm.errors import UserError
from lwm.model.config import LlamaConfig
from lwm.model.llama import Llama
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace
from lwm.train.config import AdamW, Keep, Schedule, Training
from lwm.train.loop import Stopped, train
from lwm.train.placing import own_rows
from lwm.train.task import LanguageTask

SPACE = TokenSpace(text=64)
CONFIG = LlamaConfig(
    tokens=SPACE,
    dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=32,
    max_context=64,
)


class Counting:
    """Examples that count upwards from some number."""

    def __len__(self):
        return 50

    def __getitem__(self, number):
        ids = np.arange(number, number + 5 + number * 7 % 40, dtype=np.int32) % SPACE.text
        return Example(ids=ids, loss_mask=np.ones(len(ids), bool), name=str(number))


class Printing:
    def begin(self, last):
        pass

    def busy(self, text):
        pass

    def __call__(self, line):
        print(line["step"], line["loss"], flush=True)

    def warn(self, text):
        print(text, file=sys.stderr)


ROWS = 4


def main(folder: Path, steps: int, text: str = "1,1,1,1", sink: Any = None) -> None:
    mesh = make_mesh(text)
    training = Training(
        steps=steps,
        accumulate=2,
        optimizer=AdamW(schedule=Schedule(peak=2e-2, warmup=5)),
        keep=Keep(every=4, last=2),
    )
    packing = PackingConfig(length=64, open_rows=3)
    mixture = Mixture(streams=4)

    def draw() -> Llama:
        return Llama.init(CONFIG, key=jr.key(0))

    task = LanguageTask(
        training,
        draw,
        jax.jit(draw),
        Loader([Counting()], SPACE, packing, mixture, rows=ROWS, own=own_rows(mesh, ROWS)),
        mesh,
    )
    state = train(training, task, mesh, folder, sink=sink or Printing())
    leaves = [on_host(leaf) for leaf in jax.tree.leaves(state)]  # by all processes
    if jax.process_index() == 0:
        np.savez(folder / "final.npz", *leaves)


if __name__ == "__main__":
    coordinator, count, index = sys.argv[4:] or (None, 1, 0)
    if coordinator:
        # Four devices, those of all processes together.
        os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={4 // int(count)}"
        join(Processes(coordinator=coordinator, count=int(count), index=int(index), timeout=30))
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:4])
    except Stopped as stopped:
        print(stopped, flush=True)
    except BaseException as error:
        end_alone(error)
        if isinstance(error, UserError):
            sys.exit(f"error: {error}")
        raise
