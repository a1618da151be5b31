"""Products of low precision that XLA on CPU can also run."""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float


def product(
    subscripts: str,
    a: Float[Array, "..."],
    b: Float[Array, "..."],
    *,
    aligned: bool = False,
    out_sharding: P | None = None,
) -> Float[Array, "..."]:
    """An einsum of two arrays of one type, summed and returned in float32.

    Args:
        subscripts: As of `einsum`.
        a: The left side.
        b: The right side.
        aligned: The dimension that is summed is the last one of `a` as it lies in memory. XLA
            on CPU then multiplies bfloat16 on the processor's matrix units; where a transposition
            comes before, it merges that into the product, and fails as it runs.
        out_sharding: Where the result lies, if that does not follow from the inputs.
    """
    multiply = partial(
        jnp.einsum, subscripts, preferred_element_type=jnp.float32, out_sharding=out_sharding
    )
    if aligned or a.dtype == jnp.float32:
        return multiply(a, b)

    def widened(a, b):
        return multiply(a.astype(jnp.float32), b.astype(jnp.float32))

    return lax.platform_dependent(a, b, cpu=widened, default=multiply)
