"""Times an update of SmolLM2-135M's adapters beside PEFT, and beside an update of all weights.

    python benchmarks/lora.py

One row of the first chapter of Moby-Dick; adapters of all linear layers; AdamW. Each case runs in a
process of its own, which has a peak of memory of its own. Both libraries start from the same
float32 safetensors, and the loss of the first update shows that they compute the same.
"""

import dataclasses
import datetime
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import tyro

MODEL, CHAPTER = "smollm2-135m-instruct", "shipped:moby-dick/chapter-1.txt"
CASES = (
    "lwm, all weights",
    "lwm, adapters, float32",
    "lwm, adapters, bfloat16",
    "lwm, adapters, int8",
    "lwm, adapters, int4",
    "PEFT, adapters, float32",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to time, and the folder of the table."""

    rank: int = 16
    length: int = 512
    repeats: int = 7
    results: Path = Path(__file__).parent / "results"
    folder: Path | None = None
    """Where the model lies as safetensors; by default it is written into a temporary folder."""
    only: str | None = None
    """One of `CASES`: measures that in this process, and prints JSON."""


Update = Callable[[], float]


def ours(config: Benchmark, kind: str) -> tuple[Update, int]:
    """Returns an update of ours, which returns the loss, and the number of trained weights."""
    import jax

    from lwm.data.pack import PackingConfig
    from lwm.model.config import LoRA
    from lwm.sharding import make_mesh
    from lwm.train.config import AdamW, Data, DataSet, LoopConfig, Run, Schedule, Training
    from lwm.train.task import open_task

    *_, last = kind.split(", ")
    lora = LoRA() if last == "all weights" else LoRA(rank=config.rank, frozen_dtype=cast(Any, last))
    run = Run(
        init=str(config.folder),
        data=Data(
            sets=(DataSet(files=(CHAPTER,)),),
            packing=PackingConfig(length=config.length),
            rows=1,
            streams=1,
            shuffle=False,
        ),
        training=Training(
            steps=1000,
            optimizer=AdamW(schedule=Schedule(peak=1e-4, warmup=1, shape="constant")),
        ),
        lora=lora,
    )
    assert isinstance(run.training, LoopConfig)
    mesh = make_mesh()
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        task = open_task(run, Path(folder), mesh, warn=print, resumed=False).task
        state = [task.start()]
        batch = next(iter(task.batches))

    def update() -> float:
        with jax.set_mesh(mesh):
            state[0], line = task.update(state[0], [batch])
        return line["loss"]

    return update, sum(leaf.size for leaf in jax.tree.leaves(state[0].model))


def theirs(config: Benchmark) -> tuple[Update, int]:
    """Returns an update of PEFT with transformers, whose attention is SDPA."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from lwm.convert.open import open_model_files
    from lwm.data.format import ExampleFormat
    from lwm.data.sets import open_set

    opened = open_model_files(str(config.folder))
    examples = open_set((CHAPTER,), ExampleFormat(), opened.tokenizer, opened.config.tokens)
    ids = torch.tensor(examples[0].ids[: config.length + 1].astype("int64"))[None]
    base = AutoModelForCausalLM.from_pretrained(config.folder, dtype=torch.float32)
    lora = peft.LoraConfig(r=config.rank, lora_alpha=16, target_modules="all-linear")
    model = peft.get_peft_model(base, lora)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def update() -> float:
        loss = model(ids, labels=ids, use_cache=False).loss  # it shifts them itself
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return update, sum(weight.numel() for weight in trained)


def measure(config: Benchmark, case: str) -> dict[str, float]:
    """Times one case; its first update, which compiles, is not counted."""
    update, trained = theirs(config) if case.startswith("PEFT") else ours(config, case)
    loss, taken = update(), []
    for _ in range(config.repeats):
        begun = time.perf_counter()
        update()
        taken.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"loss": loss, "trained": trained, "wall": statistics.median(taken), "peak": peak}


def apart(config: Benchmark, case: str) -> dict[str, float]:
    """Measures one case in a process of its own."""
    given = ("rank", "length", "repeats", "folder")
    options = [part for name in given for part in (f"--{name}", str(getattr(config, name)))]
    command = [sys.executable, __file__, "--only", case, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(config: Benchmark) -> list[str]:
    """Measures all cases; prints and returns the table."""
    from attention import hardware, versions

    lines = [
        f"# An update of adapters, {datetime.date.today()}",
        "",
        f"{hardware()}; {versions('torch', 'transformers', 'peft')}; {MODEL}, one row of"
        f" {config.length} tokens, adapters of rank {config.rank} of all linear layers, AdamW;"
        f" medians of {config.repeats}; GB of resident memory at the peak, reading the model"
        " included.",
        "",
        "| | trained weights | loss of the first update | seconds | tokens/s | peak |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for case in CASES:
        if case.startswith("PEFT") and not (find_spec("peft") and find_spec("torch")):
            continue
        found = apart(config, case)
        rate = config.length / found["wall"]
        lines.append(
            f"| {case} | {found['trained']:,} | {found['loss']:.4f} | {found['wall']:.2f} |"
            f" {rate:.0f} | {found['peak']:.2f} |"
        )
        print(lines[-1], flush=True)
    return lines


def main(config: Benchmark) -> None:
    """Prints the table and writes it to `results`."""
    if config.only:
        print(json.dumps(measure(config, config.only)))
        return
    from lwm.convert.convert import convert_model
    from lwm.convert.open import open_model_files

    with tempfile.TemporaryDirectory() as folder:
        if config.folder is None:
            place = Path(folder) / "model"
            convert_model(open_model_files(MODEL), place, dtype="float32")
            config = dataclasses.replace(config, folder=place)
        lines = table(config)
    config.results.mkdir(parents=True, exist_ok=True)
    path = config.results / f"lora-cpu-{datetime.date.today()}.md"
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
