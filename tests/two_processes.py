"""One of two processes that compute gradients and look at frames together; imported by a test, too.

python tests/two_processes.py COORDINATOR INDEX FOLDER
"""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=4"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from lwm.distributed import Processes, join
from lwm.model.config import LlamaConfig
from lwm.model.layers import Packing
from lwm.model.llama import Llama
from lwm.ops.layout import order
from lwm.sharding import TOKENS, make_mesh, on_mesh
from lwm.tokens import TokenSpace
from lwm.train.vqgan.validate import HeldOutFrames, measure_frames
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.model import VQGAN

MESH = "1,2,2,2"
CONFIG = LlamaConfig(
    tokens=TokenSpace(text=256),
    dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    max_context=64,
    init_std=0.2,
)
SMALL_VQGAN = VQGANConfig(
    resolution=8, hidden=32, multipliers=(1,), res_blocks=1, z_channels=32, codes=16, code_dim=4
)


def compute() -> list[np.ndarray]:
    """Returns the loss and every gradient, whole."""
    mesh = make_mesh(MESH)
    tokens, targets = np.random.default_rng(0).integers(0, 256, (2, 4, 64), np.int32)
    there = order("zigzag", 64, mesh.shape["sp"])

    def put(x):
        return jax.make_array_from_callback(x.shape, on_mesh(mesh, TOKENS), lambda at: x[at])

    positions = np.broadcast_to(there, tokens.shape).astype(np.int32)
    packing = Packing(put(np.zeros_like(tokens)), put(positions), jnp.asarray(there))

    @jax.jit
    def run(tokens, targets, packing):
        def loss(model):
            return model.losses(tokens, targets, packing).nll.mean()

        return jax.value_and_grad(loss)(Llama.init(CONFIG, key=jr.key(0)))

    with jax.set_mesh(mesh):
        found = run(put(tokens[:, there]), put(targets[:, there]), packing)
        return [np.asarray(process_allgather(x, tiled=True)) for x in jax.tree.leaves(found)]


def measure(mesh: str, folder: Path) -> dict:
    """Returns what is found, and draws a sheet into the folder."""
    folder.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    with jax.set_mesh(make_mesh(mesh)):
        model = jax.jit(lambda: VQGAN.init(SMALL_VQGAN, key=jr.key(0)))()
        return measure_frames({"some": HeldOutFrames(frames)}, model, folder / "0.png", count=3)


if __name__ == "__main__":
    coordinator, index, folder = sys.argv[1:]
    join(Processes(coordinator=coordinator, count=2, index=int(index)))
    mesh = make_mesh(MESH)
    # Tensor and sequence parallelism stay inside a process.
    for inner in mesh.devices.reshape(2, 4):
        assert len({device.process_index for device in inner}) == 1
    np.savez(Path(folder) / f"{index}.npz", *compute())
    found = measure("dp=8", Path(folder) / index)
    (Path(folder) / f"{index}.json").write_text(json.dumps(found))
