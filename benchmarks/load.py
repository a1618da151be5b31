"""Times how fast a file of LWM's parameters is loaded, beside `cat` of the same file.

    python benchmarks/load.py

The file has the shape of LWM's 7B with vision: 13.6 GB in bfloat16. Before each run it is dropped
from the page cache, and the two take turns.
"""

import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from attention import hardware

RUN = Path(__file__).parents[1] / "tests" / "loading_run.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to time, and the folder of the table."""

    dim: int = 4096
    mlp_dim: int = 11008
    layers: int = 32
    repeats: int = 3
    folder: Path | None = None
    """For the file; by default, that of temporary files."""
    results: Path = Path(__file__).parent / "results"


def script(*arguments: object) -> str:
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def forget(file: Path) -> None:
    """Drops a file from the page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cat(file: Path) -> float:
    start = time.perf_counter()
    with open(os.devnull, "wb") as sink:
        subprocess.run(["cat", str(file)], check=True, stdout=sink)
    return time.perf_counter() - start


def main(config: Benchmark) -> None:
    """Prints the table and writes it to `results`."""
    cats, loads = [], []
    with tempfile.TemporaryDirectory(dir=config.folder) as name:
        file = Path(name) / "params"
        script("write", file, config.dim, config.mlp_dim, config.layers)
        size = file.stat().st_size
        for _ in range(config.repeats):
            forget(file)
            cats.append(cat(file))
            forget(file)
            loads.append(json.loads(script("load", file)))
    seconds = statistics.median(load["seconds"] for load in loads)
    plain = statistics.median(cats)
    over = max(load["over"] for load in loads)
    lines = [
        f"# Loading LWM's parameters, {datetime.date.today()}",
        "",
        f"{hardware()}; {config.layers} layers of {config.dim} and {config.mlp_dim} with vision,"
        f" bfloat16, stacked, {size / 1e9:.1f} GB, not in the page cache; medians of"
        f" {config.repeats} turns.",
        "",
        "| | seconds | GB/s | all turns, s |",
        "| --- | --- | --- | --- |",
        row("`cat` to /dev/null", size, plain, cats),
        row("lwm, onto one device", size, seconds, [load["seconds"] for load in loads]),
        "",
        f"lwm's rate is {plain / seconds:.2f} of that of `cat`. Anonymous memory at the worst,"
        f" beyond the {loads[0]['result'] / 1e9:.1f} GB of the model: {over / 2**30:.3f} GiB.",
    ]
    print("\n".join(lines))
    config.results.mkdir(parents=True, exist_ok=True)
    table = config.results / f"load-cpu-{datetime.date.today()}.md"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(name: str, size: int, seconds: float, turns: list[float]) -> str:
    each = ", ".join(f"{turn:.1f}" for turn in turns)
    return f"| {name} | {seconds:.1f} | {1e-9 * size / seconds:.2f} | {each} |"


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
