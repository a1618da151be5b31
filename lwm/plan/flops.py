"""What training costs in floating-point operations, and how many a device can do in a second.

One multiplication and one addition are two operations. Counted is what the model needs, after
PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): what the backward pass makes again to
save memory is not, nor are norms, softmax, RoPE and the optimizer. Their share of what the devices
could have done in the same time is the model FLOPs utilization, MFU.
"""

import functools
import re
import time

import jax
import jax.numpy as jnp

from lwm.model.config import Dtype, LlamaConfig

# Dense peaks in bfloat16 and in float32, FLOP/s. JAX multiplies float32 by default in TF32 on these
# GPUs and in one pass of bfloat16 on TPUs (jax.lax.Precision.DEFAULT), so those peaks stand for
# float32. NVIDIA's datasheets of the A100 (2021), H100 (2023) and H200 (2024) Tensor Core GPUs,
# halved where they are given with sparsity; Google Cloud's documentation, "TPU v4", "TPU v5e",
# "TPU v5p" and "TPU v6e", peak compute per chip.
_GPUS = (
    (r"\bH[12]00 NVL\b", 835.5e12, 417.5e12),
    (r"\bH100 PCIe\b", 756.5e12, 378e12),
    (r"\bH[12]00\b", 989.5e12, 494.5e12),
    (r"\bA100\b", 312e12, 156e12),
)
_TPUS = {
    "TPU v4": 275e12,
    "TPU v5e": 197e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6e": 918e12,
    "TPU v6 lite": 918e12,
}
_MEASURING = 0.25
"""Seconds that the measurement on a CPU means to take."""


def matmul_parameters(config: LlamaConfig) -> int:
    """Counts the weights that each token is multiplied with: all but the table it is looked up in.

    The head counts, also where it is that table, and with its padding.
    """
    heads = config.num_heads + config.num_kv_heads
    layer = config.dim * (2 * heads * config.head_dim + 3 * config.mlp_dim)
    return config.num_layers * layer + config.dim * config.tokens.rows


def training_flops(config: LlamaConfig, *, tokens: int, pairs: float) -> float:
    """Returns the operations of the forward and the backward pass.

    They are 6 P T + 12 L N H Q: each of T tokens meets each of P weights in one multiplication and
    one addition forward, and in twice as many backward; in each of L layers and N heads each of Q
    pairs of a query and a key that it sees costs two products of H numbers forward, its score and
    its share of the sum, and twice as many backward. PaLM has Q = T S, the whole square of rows of
    S tokens; here Q is what the mask leaves, about half of it, and less where documents are packed.

    Args:
        config: The model.
        tokens: T, without empty slots.
        pairs: Q, all rows and their documents together.
    """
    attention = config.num_layers * config.num_heads * config.head_dim
    return 6.0 * matmul_parameters(config) * tokens + 12.0 * attention * pairs


def peak_flops(device: jax.Device, dtype: Dtype) -> float | None:
    """Returns the operations a second that a device can do at most; None if that is not known.

    For a CPU there is no such number to look up: it is the best of a few products of square
    matrices of that type, measured at the first call in a process, in about 0.3 seconds; on a busy
    machine it comes out too low. The devices of one processor share it alike.
    """
    if device.platform == "cpu":
        return _measured(dtype) / len(jax.local_devices(backend="cpu"))
    return known_peak(device.device_kind, dtype)


def known_peak(kind: str, dtype: Dtype) -> float | None:
    """Looks up what `peak_flops` says of a GPU or TPU that JAX calls `kind`."""
    if kind in _TPUS:
        return _TPUS[kind]
    # A part of a GPU has the name of the whole in its own.
    known = (row for row in _GPUS if re.search(row[0], kind) and "MIG" not in kind)
    _, bfloat16, float32 = next(known, (None, None, None))
    return bfloat16 if dtype == "bfloat16" else float32


@functools.cache
def _measured(dtype: Dtype) -> float:
    """Returns the best rate of products that grow until there is no time for a larger one."""
    begun, best = time.perf_counter(), 0.0
    device = jax.local_devices(backend="cpu")[0]
    multiply = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    # The mesh in use, if any, is no concern of one device.
    with jax.set_mesh(jax.sharding.Mesh([device], "x")):
        for size in (512, 1024, 2048, 4096):
            x = jnp.ones((size, size), dtype)
            run = jax.jit(multiply).lower(x, x).compile()
            run(x, x).block_until_ready()
            for _ in range(3):
                start = time.perf_counter()
                run(x, x).block_until_ready()
                took = time.perf_counter() - start
                best = max(best, 2 * size**3 / took)
            # The next size takes eight times as long, four times over, and is compiled.
            if time.perf_counter() - begun + 40 * took > _MEASURING:
                break
    return best
