"""Times causal attention, forward and forward + backward, beside PyTorch's SDPA if it is installed.

    python benchmarks/attention.py --lengths 2048 4096 --head-dims 64

Both libraries take turns in one process and use every core they may; medians are reported.
"""

import dataclasses
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

from lwm.ops.attention import attention
from lwm.ops.mask import Mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to time, and the folder of the table."""

    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)
    head_dims: tuple[int, ...] = (32, 64, 128)
    heads: int = 8
    key_heads: int = 8
    batch: int = 1
    dtype: str = "float32"
    repeats: int = 5
    implementation: str | None = None
    results: Path = Path(__file__).parent / "results"


Runs = dict[str, Callable[[], object]]


def medians(runs: Runs, repeats: int) -> dict[str, float]:
    """Runs each in turn, once to warm up and then `repeats` times; returns seconds."""
    seconds = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def draw(config: Benchmark, length: int, head_dim: int) -> list[jax.Array]:
    """Draws q, k, v and the cotangent."""
    heads = (config.heads, config.key_heads, config.key_heads, config.heads)
    shapes = [(config.batch, length, n, head_dim) for n in heads]
    return [
        jr.normal(key, shape, config.dtype)
        for key, shape in zip(jr.split(jr.key(0), 4), shapes, strict=True)
    ]


def ours(config: Benchmark, tensors: list[jax.Array]) -> Runs:
    """Our forward, and forward with backward."""
    batch, length = tensors[0].shape[:2]
    index, segments = jnp.arange(length), jnp.zeros((batch, length), jnp.int32)

    def attend(q, k, v, index, segments):
        mask = Mask(index, index, segments, segments)
        return attention(q, k, v, mask, implementation=config.implementation)

    def both(q, k, v, dout, *where):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, *where), q, k, v)
        return out, pull(dout)

    forward, backward = jax.jit(attend), jax.jit(both)
    return {
        "forward": lambda: jax.block_until_ready(forward(*tensors[:3], index, segments)),
        "forward + backward": lambda: jax.block_until_ready(backward(*tensors, index, segments)),
    }


def torch_device() -> str | None:
    """Says where PyTorch runs on the device that JAX uses, if it can."""
    if find_spec("torch") is None:
        return None
    import torch

    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    return None if device == "cuda" and not torch.cuda.is_available() else device


def theirs(config: Benchmark, tensors: list[jax.Array], device: str) -> Runs:
    """The same of PyTorch, on tensors already in its own B N S H order."""
    import torch

    dtype = getattr(torch, config.dtype)
    *qkv, dout = (
        torch.tensor(jax.device_get(x.astype(jnp.float32))).transpose(1, 2).contiguous()
        for x in tensors
    )
    dout = dout.to(device, dtype)
    qkv = [x.to(device, dtype).requires_grad_() for x in qkv]

    def wait(x):
        if device == "cuda":
            torch.cuda.synchronize()
        return x

    def attend():
        q, k, v = qkv
        grouped = config.heads != config.key_heads
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=grouped
        )

    def forward():
        with torch.no_grad():
            return wait(attend())

    return {
        "forward": forward,
        "forward + backward": lambda: wait(torch.autograd.grad(attend(), qkv, dout)),
    }


def matmul(config: Benchmark, device: str | None) -> dict[str, float]:
    """The GFLOP/s of a square product, what either library can hope for."""
    n = 2048
    x = jr.normal(jr.key(0), (n, n), config.dtype)
    multiply = jax.jit(jnp.matmul)
    runs: Runs = {"lwm": lambda: multiply(x, x).block_until_ready()}
    if device:
        import torch

        y = torch.randn(n, n, device=device, dtype=getattr(torch, config.dtype))
        runs["torch"] = lambda: (y @ y)[0, 0].item()
    return {name: 2e-9 * n**3 / s for name, s in medians(runs, 10).items()}


def hardware() -> str:
    """Names the device, and the CPU with its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((x.split(": ")[1] for x in lines if x.startswith("model name")), platform.machine())
    cpu = f"{cpu}, {os.cpu_count()} cores"
    return cpu if jax.default_backend() == "cpu" else f"{jax.devices()[0].device_kind} ({cpu})"


def versions(*packages: str) -> str:
    """Names the versions of lwm, JAX and the packages that are installed."""
    installed = [name for name in packages if find_spec(name)]
    return ", ".join(f"{name} {version(name)}" for name in ("lwm", "jax", *installed))


def row(name: str, flops: float, seconds: dict[str, float], peak: dict[str, float]) -> str:
    """One line of the table."""
    us, them = seconds["lwm"], seconds.get("torch")
    compared = [f"{1e3 * them:.1f}", f"{us / them:.2f}"] if them else ["", ""]
    speeds = [f"{1e-9 * flops / s:.0f}" for s in (us, *([them] if them else []))]
    cells = [name, f"{1e3 * us:.1f}", *compared, " / ".join(speeds)]
    return f"| {' | '.join([*cells, ' / '.join(f'{x:.0f}' for x in peak.values())])} |"


def table(config: Benchmark) -> list[str]:
    """Times every case and prints its line as it comes."""
    device = torch_device()
    lines = [
        f"# Causal attention, {datetime.date.today()}",
        "",
        f"{hardware()}; {versions('torch')}; {config.dtype}, batch {config.batch},"
        f" {config.heads} heads over {config.key_heads}; medians of {config.repeats}. GFLOP/s count"
        " the causal half; where there are two, lwm / torch.",
        "",
        "| length × head dim | lwm ms | torch ms | ratio | GFLOP/s | matmul GFLOP/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for length in config.lengths:
        for head_dim in config.head_dims:
            tensors = draw(config, length, head_dim)
            libraries = {"lwm": ours(config, tensors)}
            if device:
                libraries["torch"] = theirs(config, tensors, device)
            peak = matmul(config, device)
            flops = 2 * config.batch * config.heads * length**2 * head_dim
            # The backward has five products where the forward has two.
            for what, work in (("forward", flops), ("forward + backward", 3.5 * flops)):
                runs = {name: runs[what] for name, runs in libraries.items()}
                name = f"{length} × {head_dim} {what}"
                lines.append(row(name, work, medians(runs, config.repeats), peak))
                print(lines[-1], flush=True)
    return lines


def main(config: Benchmark) -> None:
    """Prints the table and writes it to `results`."""
    lines = table(config)
    name = f"attention-{jax.default_backend()}-{datetime.date.today()}.md"
    config.results.mkdir(parents=True, exist_ok=True)
    (config.results / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
