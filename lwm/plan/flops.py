"""Floating-point operations of training, and the peak rate of devices.

A multiplication and an addition are two operations. The count follows PaLM (Chowdhery et al. 2022,
arXiv 2204.02311, appendix B): the model's products alone, without rematerialization, norms,
softmax, RoPE and the optimizer. Divided by the peak of the devices over the same time, it is the
model FLOPs utilization (MFU).
"""

import functools
import re
import time

import jax
import jax.numpy as jnp

from lwm.model.config import Dtype, LlamaConfig

# Dense peaks in bfloat16 and in float32, FLOP/s; float32 as `lwm.ops.precision` has it, not TF32.
# NVIDIA's datasheets of the A100 (2021), H100 (2023) and H200 (2024) Tensor Core GPUs, halved where
# they are given with sparsity; Google Cloud's documentation, "TPU v4", "TPU v5e", "TPU v5p" and
# "TPU v6e", peak compute per chip in bfloat16.
_GPUS = (
    (r"\bH[12]00 NVL\b", 835.5e12, 60e12),
    (r"\bH100 PCIe\b", 756.5e12, 51e12),
    (r"\bH[12]00\b", 989.5e12, 67e12),
    (r"\bA100\b", 312e12, 19.5e12),
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
_PASSES = 6
"""Products of bfloat16 of which a TPU makes one of float32."""
_MEASURING = 0.25
"""Target duration of the measurement on a CPU, in seconds."""


def matmul_parameters(config: LlamaConfig) -> int:
    """Counts the weights that each token is multiplied with: all but the embedding table.

    The head counts with its padding, also if it is tied to that table.
    """
    heads = config.num_heads + config.num_kv_heads
    layer = config.dim * (2 * heads * config.head_dim + 3 * config.mlp_dim)
    return config.num_layers * layer + config.dim * config.tokens.rows


def training_flops(config: LlamaConfig, *, tokens: int, pairs: float, adapters: int = 0) -> float:
    """Returns the operations of the forward and the backward pass.

    They are 6 P T + 12 L N H Q. Each of T tokens takes one multiplication and one addition with
    each of P weights forward, and twice as many backward. In each of L layers and N heads, each of
    Q pairs of a query and a visible key takes two products of length H forward (score and weighted
    sum), and twice as many backward. PaLM has Q = T S, the full square of rows of S tokens; here Q
    counts the pairs that the mask allows: about half, and fewer for packed documents.

    Where adapters are trained alone, the products for the gradients of the P weights are not made:
    4 P T, and 6 A T for the A weights of the adapters.

    Args:
        config: The model.
        tokens: T, without empty slots.
        pairs: Q, summed over all rows and documents.
        adapters: A; 0 if all weights are trained.
    """
    attention = config.num_layers * config.num_heads * config.head_dim
    weights = (4.0 if adapters else 6.0) * matmul_parameters(config) + 6.0 * adapters
    return weights * tokens + 12.0 * attention * pairs


def peak_flops(device: jax.Device, dtype: Dtype) -> float | None:
    """Returns the peak operations per second of a device; None if it is not known.

    For a CPU it is measured: the best of a few products of square matrices of that type, at the
    first call in a process, in about 0.3 seconds. On a busy machine the result is too low. The
    devices of one processor share it equally.
    """
    if device.platform == "cpu":
        return _measured(dtype) / len(jax.local_devices(backend="cpu"))
    return known_peak(device.device_kind, dtype)


def known_peak(kind: str, dtype: Dtype) -> float | None:
    """Looks up the peak of a GPU or TPU by the name that JAX gives it."""
    if kind in _TPUS:
        return _TPUS[kind] / (1 if dtype == "bfloat16" else _PASSES)
    # The name of a MIG slice contains that of the whole GPU.
    known = (row for row in _GPUS if re.search(row[0], kind) and "MIG" not in kind)
    _, bfloat16, float32 = next(known, (None, None, None))
    return bfloat16 if dtype == "bfloat16" else float32


@functools.cache
def _measured(dtype: Dtype) -> float:
    """Returns the best rate over products of growing size, within the time for it."""
    begun, best = time.perf_counter(), 0.0
    device = jax.local_devices(backend="cpu")[0]
    multiply = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    # One device, whichever mesh is in use.
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
