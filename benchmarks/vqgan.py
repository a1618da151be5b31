"""Times LWM's VQGAN, frames to codes and back, beside the original's if there is a copy of it.

    python benchmarks/vqgan.py --original ~/LWM --python ~/flax/bin/python --devices 1 2

The original runs in an interpreter that has flax, ml_collections and transformers. All take turns,
each in a process of its own, with the same random weights and the same frames.
"""

import dataclasses
import datetime
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np
import tyro
from attention import hardware

from lwm.vqgan.checkpoint import to_flax
from lwm.vqgan.config import LWM_VQGAN
from lwm.vqgan.model import VQGAN

WORKER = Path(__file__).with_name("vqgan_worker.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to time, and the folder of the table."""

    original: Path | None = None
    """A checkout of the original code; without it, ours is timed alone."""
    python: Path = Path(sys.executable)
    """The interpreter that runs the original."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Of ours; the original has float32 alone."""
    devices: tuple[int, ...] = (1,)
    """How many share the frames, of ours; a processor is split into so many."""
    frames: int = 4
    batch: int = 4
    repeats: int = 3
    results: Path = Path(__file__).parent / "results"


class Worker:
    """A process that encodes and decodes when it is told to."""

    def __init__(self, config: Benchmark, folder: Path, name: str, devices: int = 1):
        """Starts it; `name` is a type of ours, or the original."""
        self.name, self.devices, self.file = name, devices, folder / f"{name}-{devices}.npz"
        self.seconds = {"encode": [], "decode": []}
        python = config.python if name == "original" else sys.executable
        rest = (config.original, folder, self.file, config.batch, devices)
        flags = f"--xla_force_host_platform_device_count={devices}"
        self.process = subprocess.Popen(
            [str(python), str(WORKER), name, *map(str, rest)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"XLA_FLAGS": flags},
            text=True,
        )

    def run(self, what: str) -> Any:
        """Does it once and returns what is printed of it."""
        assert self.process.stdin
        assert self.process.stdout
        print(what, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} ended; see above")
        return json.loads(line)


def write_inputs(folder: Path, frames: int) -> None:
    """Writes weights that keep activations near a variance of 1, as the original pickles them."""
    random = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = random.standard_normal(leaf.shape, np.float32)
        if leaf.ndim == 1:  # scales around 1 and biases around 0
            return values / 4 + ("weight" in str(path[-1]))
        return values / np.sqrt(np.prod(leaf.shape[:3])) if leaf.ndim == 4 else values

    shapes = jax.eval_shape(lambda: VQGAN.init(LWM_VQGAN, key=jr.key(0)))
    with (folder / "vqgan").open("wb") as file:
        pickle.dump(to_flax(jax.tree.map_with_path(draw, shapes)), file, protocol=4)
    side = LWM_VQGAN.resolution
    pixels = random.uniform(-1, 1, (frames, side, side, 3)).astype(np.float32)
    grid = (frames, LWM_VQGAN.codes_per_side, LWM_VQGAN.codes_per_side)
    np.savez(
        folder / "inputs.npz", pixels=pixels, codes=random.integers(LWM_VQGAN.codes, size=grid)
    )


def rows(config: Benchmark, workers: list[Worker]) -> list[str]:
    """One line for each worker, compared with the first one."""
    results = [np.load(worker.file) for worker in workers]
    lines = []
    for worker, result in zip(workers, results, strict=True):
        cells = ["original", "float32"] if worker.name == "original" else ["lwm", worker.name]
        cells.append(str(worker.devices))
        for what in ("encode", "decode"):
            ours, first = (statistics.median(each.seconds[what]) for each in (worker, workers[0]))
            cells += [f"{config.frames / ours:.2f}", f"{first / ours:.2f}"]
        same = np.mean(result["codes"] == results[0]["codes"])
        apart = np.abs(result["pixels"] - results[0]["pixels"])
        cells += [f"{100 * same:.2f}%", f"{apart.mean():.1e} / {apart.max():.1e}"]
        cells.append(f"{worker.run('memory') / 1e9:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(config: Benchmark) -> None:
    """Prints the table and writes it to `results`."""
    # The processes share a device.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, config.frames)
        workers = [Worker(config, folder, "original")] if config.original else []
        for devices in config.devices:
            workers += [Worker(config, folder, dtype, devices) for dtype in config.dtypes]
        versions = [worker.run("versions") for worker in workers]
        for turn in range(config.repeats + 1):
            for what in ("encode", "decode"):
                for worker in workers:
                    seconds = worker.run(what)
                    if turn:  # the first one compiles
                        worker.seconds[what].append(seconds)
        lines = [
            f"# LWM's VQGAN, {datetime.date.today()}",
            "",
            f"{hardware()}; {versions[0]}; {config.frames} frames of 256 × 256 pixels,"
            f" {config.batch} at a time, random weights; medians of {config.repeats} turns."
            + ("" if config.original else " The original was not at hand."),
            "",
            "| | type | devices | encode frames/s | ratio | decode frames/s | ratio | same codes"
            " | pixels apart: mean / most | peak GB |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows(config, workers),
            "",
            "Ratios and comparisons are to the first line.",
        ]
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
    print("\n".join(lines))
    config.results.mkdir(parents=True, exist_ok=True)
    table = config.results / f"vqgan-{jax.default_backend()}-{datetime.date.today()}.md"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
