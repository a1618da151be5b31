"""Times RingAttention on one device and over a ring, beside PyTorch's SDPA if it is installed.

    python benchmarks/ring.py --lengths 8192 32768 --rings 1 8

On a CPU the ring is of virtual devices that share the cores. Libraries take turns in one process;
medians of wall and of CPU seconds are reported.
"""

import os

# Before JAX is imported; more devices than cores are only so many threads.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import dataclasses
import datetime
import itertools
import statistics
import time

import attention
import jax
import jax.numpy as jnp
import tyro
from attention import Runs, draw, hardware, theirs, torch_device, versions
from jax.sharding import reshard

from lwm.ops.layout import Layout, order
from lwm.ops.mask import Mask
from lwm.ops.ring import ring_attention
from lwm.sharding import HEADS, make_mesh

ORIGINAL = {
    (8192, 1): (3.02, 3.04, 8.81, 9.27),
    (8192, 8): (3.12, 3.23, 4.71, 9.01),
    (32768, 1): (42.87, 45.91, 130.0, 143.0),
    (32768, 8): (25.42, 48.35, 79.63, 138.0),
}
"""Wall and CPU seconds of the original's ring, forward and forward + backward, on two cores of an
AMD EPYC: by length and devices."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark(attention.Benchmark):
    """Options: sizes to time, and the folder of the table."""

    lengths: tuple[int, ...] = (8192, 32_768)
    head_dims: tuple[int, ...] = (64,)
    rings: tuple[int, ...] = (1, 8)
    """Devices in a ring; one is no ring."""
    layout: Layout = "zigzag"
    repeats: int = 3


def ours(config: Benchmark, tensors: list[jax.Array], sp: int) -> Runs:
    """Our forward, and forward with backward, over a ring of `sp` devices."""
    mesh = make_mesh(f"sp={sp}")
    batch, length = tensors[0].shape[:2]
    there = order(config.layout, length, sp)

    def both(q, k, v, dout, mask):
        out, pull = jax.vjp(lambda q, k, v: ring_attention(q, k, v, mask), q, k, v)
        return out, pull(dout)

    with jax.set_mesh(mesh):
        placed = [reshard(x[:, there], HEADS) for x in tensors]
        index, segments = jnp.asarray(there), jnp.zeros((batch, length), jnp.int32)
        mask = Mask(index, index, segments, segments)
        forward, backward = jax.jit(ring_attention), jax.jit(both)

    def run(function, *arguments):
        with jax.set_mesh(mesh):
            return jax.block_until_ready(function(*arguments, mask))

    return {
        "forward": lambda: run(forward, *placed[:3]),
        "forward + backward": lambda: run(backward, *placed),
    }


def medians(runs: Runs, repeats: int) -> dict[str, tuple[float, float]]:
    """Runs each in turn after a warm-up; returns wall and CPU seconds."""
    seconds = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if turn:
                taken = time.perf_counter() - wall, time.process_time() - cpu
                seconds[name].append(taken)
    return {
        name: tuple(statistics.median(column) for column in zip(*times, strict=True))
        for name, times in seconds.items()
    }


def table(config: Benchmark) -> list[str]:
    """Times every case and prints its line as it comes."""
    device = torch_device()
    lines = [
        f"# RingAttention, {datetime.date.today()}",
        "",
        f"{hardware()}; {versions('torch')}; {config.dtype}, batch {config.batch},"
        f" {config.heads} heads over {config.key_heads}, {config.layout}; medians of"
        f" {config.repeats}, seconds, wall / CPU. The original's are those of its own code on two"
        " cores of an AMD EPYC, not of this run.",
        "",
        "| length × head dim | | sp | lwm | torch SDPA | ratio of wall | original | ratio of CPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for length, head_dim in itertools.product(config.lengths, config.head_dims):
        tensors = draw(config, length, head_dim)
        libraries = {str(sp): ours(config, tensors, sp) for sp in config.rings}
        if device:
            libraries["torch"] = theirs(config, tensors, device)
        for what in ("forward", "forward + backward"):
            found = medians({name: runs[what] for name, runs in libraries.items()}, config.repeats)
            for sp in config.rings:
                lines.append(row((length, head_dim), what, sp, found))
                print(lines[-1], flush=True)
    return lines


def row(shape: tuple[int, int], what: str, sp: int, found: dict[str, tuple[float, float]]) -> str:
    """One line of the table."""
    wall, cpu = found[str(sp)]
    length, head_dim = shape
    cells = [f"{length} × {head_dim}", what, str(sp), f"{wall:.2f} / {cpu:.2f}", "", "", "", ""]
    if "torch" in found:
        their_wall, their_cpu = found["torch"]
        cells[4:6] = f"{their_wall:.2f} / {their_cpu:.2f}", f"{wall / their_wall:.2f}"
    if head_dim == 64 and (length, sp) in ORIGINAL:
        old_wall, old_cpu = ORIGINAL[length, sp][2 * (what != "forward") :][:2]
        cells[6:] = f"{old_wall:.2f} / {old_cpu:.2f}", f"{cpu / old_cpu:.2f}"
    return f"| {' | '.join(cells)} |"


def main(config: Benchmark) -> None:
    """Prints the table and writes it to `results`."""
    lines = table(config)
    name = f"ring-{jax.default_backend()}-{datetime.date.today()}.md"
    config.results.mkdir(parents=True, exist_ok=True)
    (config.results / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
