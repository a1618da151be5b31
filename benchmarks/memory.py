"""Compiles a training step for devices that are not there, and reports the memory of each.

    python benchmarks/memory.py --model 7b --mesh 1,1,1,32 --length 131072

Nothing is allocated: the loss and its gradients are compiled for as many virtual CPU devices as
the mesh asks for, and the compiler says what one of them needs, beside the formula of
docs/parallelism.md. In float32 by default: the compiler for CPUs widens arrays of bfloat16 that
those for GPU and TPU do not.
"""

import dataclasses
import math
import os
import sys
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """The step to compile."""

    model: str = "7b"
    mesh: str = "1,1,1,32"
    length: int = 131_072
    rows: int = 1
    mlp_chunk: int = 1024
    loss_chunk: int = 1024
    dtype: Literal["float32", "bfloat16"] = "float32"


def estimate(config, compute, sizes: tuple[int, int, int, int], rows: int, length: int) -> float:
    """The formula of docs/parallelism.md for weights, gradients and activations, in bytes."""
    dp, fsdp, tp, sp = sizes
    D, F, L, N, K, H = (
        config.dim,
        config.mlp_dim,
        config.num_layers,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
    )
    V = config.tokens.rows
    layer = D * (2 * N + 2 * K) * H + 3 * D * F
    weights = L * layer + V * D * (1 if config.tie_embeddings else 2)
    b, s = rows / (dp * fsdp), length / sp
    width = 2 if compute.dtype == "bfloat16" else 4
    stored = 2 * 4 * weights / (fsdp * tp * sp)
    saved = L * b * s * (width * D + (width * N * H + 4 * N) / tp)
    ring = b * s * 4 * (4 * N + 8 * K) * H / tp
    chunks = 3 * 4 * b * compute.mlp_chunk * F / tp + 3 * 4 * compute.loss_chunk * V / tp
    work = 10 * width * b * s * D + 2 * 4 * (layer + V * D) / tp
    return stored + saved + ring + chunks + work


def main(step: Step) -> None:
    """Compiles, and prints one line of a table."""
    import jax
    import jax.random as jr

    from lwm.model.config import Compute, preset
    from lwm.model.layers import Packing
    from lwm.model.llama import Llama
    from lwm.sharding import make_mesh, parse_mesh

    config = preset(step.model)
    compute = Compute(
        dtype=step.dtype,
        remat="attention",
        mlp_chunk=step.mlp_chunk,
        loss_chunk=step.loss_chunk,
    )
    mesh = make_mesh(step.mesh)
    with jax.set_mesh(mesh):

        def loss(model, tokens, targets, packing):
            return model.losses(tokens, targets, packing).nll.mean()

        model = jax.eval_shape(lambda: Llama.init(config, compute, key=jr.key(0)))
        packing = jax.eval_shape(lambda: Packing.whole(step.rows, step.length))
        ids = packing.segments
        compiled = jax.jit(jax.grad(loss)).lower(model, ids, ids, packing).compile()
    memory = compiled.memory_analysis()
    if memory is None:
        sys.exit("the compiler does not say how much memory the step needs")
    parts = (
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
    )
    sizes = parse_mesh(step.mesh, mesh.size)
    shown = [f"{part / 2**30:.2f}" for part in (*parts, sum(parts))]
    expected = estimate(config, compute, sizes, step.rows, step.length) / 2**30
    print(
        f"| {step.model} | {step.mesh} | {step.rows} × {step.length:,} | "
        f"{' | '.join(shown)} | {expected:.2f} |"
    )


if __name__ == "__main__":
    given = next((b for a, b in zip(sys.argv, sys.argv[1:], strict=False) if a == "--mesh"), None)
    devices = math.prod(map(int, (given or Step.mesh).split(",")))
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import tyro

    main(tyro.cli(Step))
