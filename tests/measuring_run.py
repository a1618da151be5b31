"""One of two processes that look at held-out frames; also imported by a test.

python tests/measuring_run.py COORDINATOR INDEX FOLDER
"""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.random as jr
import numpy as np

from lwm.distributed import Processes, join
from lwm.sharding import make_mesh
from lwm.train.vqgan.validate import HeldOutFrames, measure_frames
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.model import VQGAN

CONFIG = VQGANConfig(
    resolution=8, hidden=32, multipliers=(1,), res_blocks=1, z_channels=32, codes=16, code_dim=4
)


def measure(mesh: str, folder: Path) -> dict:
    """Returns what is found, and draws a sheet into the folder."""
    folder.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    with jax.set_mesh(make_mesh(mesh)):
        model = jax.jit(lambda: VQGAN.init(CONFIG, key=jr.key(0)))()
        return measure_frames({"some": HeldOutFrames(frames)}, model, folder / "0.png", count=3)


if __name__ == "__main__":
    coordinator, index, folder = sys.argv[1:]
    join(Processes(coordinator=coordinator, count=2, index=int(index)))
    found = measure("2,1,1,1", Path(folder) / index)
    (Path(folder) / f"{index}.json").write_text(json.dumps(found))
