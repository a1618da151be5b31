"""Times a training step of a small model beside transformers with SDPA, at several lengths.

    python benchmarks/train.py --lengths 4096 16384

Hidden 256, 6 layers, 8 heads, feed-forward 704, vocabulary 4096, one row. Each case runs in a
process of its own, so that peaks of memory can be told apart; medians of wall and of CPU seconds.
"""

import dataclasses
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import tyro

VOCABULARY, DIM, LAYERS, HEADS, MLP = 4096, 256, 6, 8, 704

ORIGINAL = {
    (4096, 1): (13.06, 15.26, 1.14),
    (4096, 8): (8.59, 15.99, 1.20),
    (16_384, 1): (194.0, 198.0, 2.87),
    (16_384, 8): (127.0, 202.0, 2.96),
    (32_768, 8): (371.0, 709.0, 5.31),
}
"""Wall and CPU seconds a step, and GB at the peak, of the original on two cores of an AMD EPYC."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to time, and the folder of the table."""

    lengths: tuple[int, ...] = (4096, 16_384)
    rings: tuple[int, ...] = (1, 8)
    peer_lengths: tuple[int, ...] = (4096,)
    """Lengths at which transformers runs, too."""
    repeats: int = 3
    results: Path = Path(__file__).parent / "results"
    only: str | None = None
    """`lwm float32 4096 1` and the like: measures that in this process, and prints JSON."""


def ours(dtype: str, length: int, sp: int) -> Callable[[], float]:
    """A step of ours."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import numpy as np

    from lwm.data.example import Batch
    from lwm.model.config import Compute, LlamaConfig
    from lwm.model.llama import Llama
    from lwm.sharding import make_mesh
    from lwm.tokens import TokenSpace
    from lwm.train.config import AdamW, Loss
    from lwm.train.optimizer import build_optimizer
    from lwm.train.placing import shard_batch
    from lwm.train.step import TrainState, TrainStep

    config = LlamaConfig(
        tokens=TokenSpace(text=VOCABULARY),
        dim=DIM,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=DIM // HEADS,
        mlp_dim=MLP,
        max_context=length,
    )
    compute = Compute(
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
        remat="attention",
        mlp_chunk=2048,
        loss_chunk=512,
    )
    mesh = make_mesh(f"sp={sp}")
    optimizer = build_optimizer(AdamW(), 1000)
    with jax.set_mesh(mesh):
        model = jax.jit(lambda: Llama.init(config, compute, key=jr.key(0)))()
        state, step = TrainState.start(model, optimizer), TrainStep(optimizer, Loss())
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, 1, length + 1)).astype(np.int32)
    batch = Batch(
        tokens=ids[..., :-1],
        targets=ids[..., 1:],
        segments=np.zeros((1, 1, length), np.int32),
        positions=np.arange(length, dtype=np.int32)[None, None],
        weights=np.full((1, 1, length), 1 / length, np.float32),
        counts=np.ones((1, 1, 2), np.float32),
    )
    placed, index = shard_batch(batch, mesh, "zigzag", rows=1)
    held = [state]

    def run() -> float:
        with jax.set_mesh(mesh):
            held[0], metrics = step(held[0], placed, jnp.asarray(index))
            return float(metrics.loss)

    return run


def theirs(dtype: str, length: int, sp: int) -> Callable[[], float]:
    """A step of transformers with AdamW; attention is SDPA, its default."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=DIM,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=length,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95))
    ids = torch.randint(0, VOCABULARY, (1, length))

    def run() -> float:
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def measure(case: str, repeats: int) -> dict[str, float]:
    """Times one case after a warm-up."""
    name, dtype, length, sp = case.split()
    run = {"lwm": ours, "transformers": theirs}[name](dtype, int(length), int(sp))
    run()
    taken = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"wall": wall, "cpu": cpu, "peak": peak}


def apart(case: str, repeats: int) -> dict[str, float]:
    """Measures one case in a process of its own, with as many virtual devices as it asks for."""
    done = subprocess.run(
        [sys.executable, __file__, "--only", case, "--repeats", str(repeats)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={case.split()[3]}"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def cases(config: Benchmark) -> list[str]:
    """All that is measured, those to be compared one after the other."""
    found = []
    for length in config.lengths:
        found += [f"lwm float32 {length} {sp}" for sp in config.rings]
        found.append(f"lwm bfloat16 {length} 1")
        if length in config.peer_lengths and find_spec("transformers") and find_spec("torch"):
            found.append(f"transformers float32 {length} 1")
    return found


def row(case: str, found: dict[str, float]) -> str:
    """One line of the table."""
    name, dtype, length, sp = case.split()
    cells = [name, dtype, length, sp]
    cells += [f"{found['wall']:.2f}", f"{found['cpu']:.2f}", f"{found['peak']:.2f}", "", ""]
    original = ORIGINAL.get((int(length), int(sp)))
    if name == "lwm" and original:
        wall, cpu, peak = original
        cells[7:] = (
            f"{wall:.1f} / {cpu:.1f} / {peak:.2f}",
            f"{found['wall'] / wall:.2f} / {found['cpu'] / cpu:.2f} / {found['peak'] / peak:.2f}",
        )
    return f"| {' | '.join(cells)} |"


def main(config: Benchmark) -> None:
    """Prints the table and writes it to `results`."""
    if config.only:
        print(json.dumps(measure(config.only, config.repeats)))
        return
    from attention import hardware, versions

    lines = [
        f"# A training step, {datetime.date.today()}",
        "",
        f"{hardware()}; {versions('torch', 'transformers')}; 6.9M"
        f" parameters, one row; medians of {config.repeats}; seconds, and GB of resident memory at"
        " the peak. The original's figures are of its own code on two cores of an AMD EPYC, not of"
        " this run.",
        "",
        "| | type | tokens | sp | wall | CPU | peak | original: wall / CPU / peak | ratios |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for case in cases(config):
        lines.append(row(case, apart(case, config.repeats)))
        print(lines[-1], flush=True)
    config.results.mkdir(parents=True, exist_ok=True)
    path = config.results / f"train-cpu-{datetime.date.today()}.md"
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
