"""Times products of a few rows with weights of few bits on a CPU, beside XLA's own.

    python benchmarks/product.py

XLA's product and the kernel take turns in one process with a reduction of the same bytes by as
many threads as there are cores: what memory allows. Medians of wall and of CPU milliseconds.
"""

import dataclasses
import datetime
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from attention import hardware, versions

from lwm.model.config import BITS
from lwm.model.linear import linear
from lwm.model.quantize import QuantizedWeight, quantize_to
from lwm.sharding import make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to time, and the folder of the table."""

    depth: int = 4096
    width: int = 16_384
    rows: tuple[int, ...] = (1, 2, 4, 8, 16)
    dtypes: tuple[str, ...] = ("bfloat16", "int8", "int4")
    repeats: int = 7
    results: Path = Path(__file__).parent / "results"


def weight_of(dtype: str, depth: int, width: int) -> jax.Array | QuantizedWeight:
    """Makes a random weight."""
    weight = np.random.default_rng(0).standard_normal((depth, width), np.float32)
    if dtype in BITS:
        return QuantizedWeight(*map(jnp.asarray, quantize_to(BITS[dtype], weight, (0,))))
    return jnp.asarray(weight, dtype)


def product(kernels: bool, x: jax.Array, weight: jax.Array | QuantizedWeight) -> Callable[[], None]:
    """Compiles one of the products; the weight is an argument, as in a model."""
    os.environ["LWM_CPU_KERNELS"] = str(int(kernels))
    with jax.set_mesh(make_mesh()):
        compiled = jax.jit(lambda x, weight: linear(x, weight)).lower(x, weight).compile()
    return lambda: jax.block_until_ready(compiled(x, weight))


def reading(weight: jax.Array | QuantizedWeight) -> Callable[[], None]:
    """Reads all bytes of a weight on all cores."""
    cores = len(os.sched_getaffinity(0))
    parts = [
        part
        for leaf in jax.tree.leaves(weight)
        for part in np.array_split(np.asarray(leaf).reshape(-1).view(np.int32), cores)
    ]
    pool = ThreadPoolExecutor(cores)

    def run() -> None:
        list(pool.map(np.bitwise_or.reduce, parts))

    return run


def medians(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, tuple[float, float]]:
    """Runs each in turn; returns wall and CPU milliseconds."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if number:
                spent = time.perf_counter() - wall, time.process_time() - cpu
                found[name].append(spent)
    return {
        name: tuple(1e3 * statistics.median(column) for column in zip(*times, strict=True))
        for name, times in found.items()
    }


def main(config: Benchmark) -> None:
    """Measures, prints and stores the table."""
    date = datetime.date.today()
    lines = [
        f"# Products of few rows, {config.depth} × {config.width}, {date}",
        "",
        f"{hardware()}; {versions()}; wall (CPU) ms, medians of {config.repeats} in turn.",
        "",
        "| weights | rows | XLA | kernel | reading alone |",
        "|---|---|---|---|---|",
    ]
    for dtype in config.dtypes:
        weight = weight_of(dtype, config.depth, config.width)
        for rows in config.rows:
            x = jnp.asarray(np.random.default_rng(1).standard_normal((rows, 1, config.depth)))
            x = x.astype(jnp.bfloat16 if dtype == "bfloat16" else jnp.float32)
            runs = {
                "XLA": product(False, x, weight),
                "kernel": product(True, x, weight),
                "reading": reading(weight),
            }
            times = medians(runs, config.repeats)
            cells = (f"{wall:.1f} ({cpu:.1f})" for wall, cpu in times.values())
            lines.append(f"| {dtype} | {rows} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    config.results.mkdir(exist_ok=True)
    (config.results / f"product-{date}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
