"""The product of activations with a weight, summed in float32 whatever they are stored in."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lwm.model.quantize import QuantizedWeight

FEW = 4
"""XLA on CPU has fast bfloat16 products from two rows on, and up to four they cost the same."""


def linear(
    x: Float[Array, "B S *C"],
    weight: Float[Array, "..."] | QuantizedWeight,
    *,
    bias: Float[Array, "*O"] | None = None,
    transposed: bool = False,
    dtype: DTypeLike | None = None,
    out_sharding: P | None = None,
) -> Float[Array, "B S *O"]:
    """Sums over the dimensions `*C` that `x` has after the sequence.

    Args:
        x: Activations.
        weight: Of shape `*C *O` and any type; it is used in that of `x`.
        bias: Added to the result.
        transposed: The weight is of shape `*O *C` instead, and C is one dimension.
        dtype: The type of the result, if not that of `x`.
        out_sharding: Where the result lies, if that does not follow from the inputs.
    """
    weight = weight.astype(x.dtype)
    # Merged first: XLA lowers a product that sums over two dimensions with a transpose.
    summed = x.ndim - 2
    x = x.reshape(*x.shape[:2], -1)
    if summed > 1:
        weight = weight.reshape(-1, *weight.shape[summed:])
    multiply = partial(
        jnp.einsum,
        "bsc,oc->bso" if transposed else "bsc,c...->bs...",
        preferred_element_type=dtype or x.dtype,
        out_sharding=out_sharding,
    )
    if x.dtype == jnp.float32:
        y = multiply(x, weight)
    else:
        on_cpu = partial(_on_cpu, multiply)
        y = jax.lax.platform_dependent(x, weight, cpu=on_cpu, default=multiply)
    return y if bias is None else y + bias.astype(y.dtype)


def _on_cpu(multiply: partial, x: Array, weight: Array) -> Array:
    """Asks for the one form of the product for which XLA uses the processor's matrix units."""
    rows, length = x.shape[:2]
    if rows * length < FEW:
        x = jnp.pad(x, ((0, 0), (0, FEW - length), (0, 0)))
    wide = multiply(x, weight, preferred_element_type=jnp.float32)
    return wide[:, :length].astype(multiply.keywords["preferred_element_type"])
