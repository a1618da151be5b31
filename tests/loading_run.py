"""Writes a file of LWM's parameters of any size, or loads one and says what that took.

python tests/loading_run.py write FILE WIDTH MLP_WIDTH LAYERS
python tests/loading_run.py load FILE
"""

import dataclasses
import json
import sys
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from lwm.convert.lwm import TABLE, LwmTensors
from lwm.convert.lwm_config import LwmSizes
from lwm.convert.names import LWM_NAMES, dimensions
from lwm.formats.flax_writer import write_stream
from lwm.model.config import Compute, LlamaConfig, preset
from lwm.tokens import TokenSpace

HEAD_DIM = 64


def make_config(dim: int, mlp_dim: int, num_layers: int) -> LlamaConfig:
    heads = dim // HEAD_DIM
    return dataclasses.replace(
        preset("7b"),
        tokens=TokenSpace(text=32_000, vision=8448, codes=8192),
        dim=dim,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=HEAD_DIM,
    )


def write(path: Path, config: LlamaConfig) -> None:
    """Writes stacked tensors in bfloat16, of which one layer exists at a time."""
    sizes, random = dimensions(config), np.random.default_rng(0)

    def tensors():
        for layout in LWM_NAMES.values():
            one = random.standard_normal(layout.shape(sizes), np.float32).astype(ml_dtypes.bfloat16)
            layers = (config.num_layers,) if "*" in layout.name else ()
            yield layout.name.replace("*", "scan_decoder"), np.broadcast_to(one, layers + one.shape)

    write_stream(path, tensors())


def anonymous() -> int:
    """Returns the bytes of this process's memory that are no page of a file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def load(path: Path) -> dict[str, float]:
    """Returns seconds, bytes of the model, and bytes that were in use beside it at the worst."""
    import jax

    from lwm.convert.weights import build_llama
    from lwm.sharding import make_mesh

    mesh, peak, done = make_mesh(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    before = anonymous()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    tensors = LwmTensors(path)
    sizes = LwmSizes.read(tensors.stored, path)
    config = make_config(sizes.dim, sizes.mlp_dim, sizes.num_layers)
    compute = Compute(dtype="bfloat16")
    model = jax.block_until_ready(build_llama(config, tensors, TABLE, mesh=mesh, compute=compute))
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    result = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    return {"seconds": seconds, "result": result, "over": max(peak) - before - result}


if __name__ == "__main__":
    what, file, *numbers = sys.argv[1:]
    if what == "write":
        dim, mlp_dim, num_layers = map(int, numbers)
        write(Path(file), make_config(dim, mlp_dim, num_layers))
    else:
        print(json.dumps(load(Path(file))))
