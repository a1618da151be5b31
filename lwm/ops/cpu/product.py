"""Matrix products of low precision in a form that XLA on CPU can run."""

import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from lwm.ops.precision import precision_of


def product(
    subscripts: str,
    a: Float[Array, "..."],
    b: Float[Array, "..."],
    *,
    aligned: bool = False,
    out_sharding: P | None = None,
) -> Float[Array, "..."]:
    """Computes an einsum in the type of `a`, summed and returned in float32.

    Args:
        subscripts: Subscripts of `einsum`.
        a: Left side.
        b: Right side; XLA on CPU may multiply it as it is.
        aligned: Promises that the summed dimension is the last one of `a` in memory. XLA on CPU
            then multiplies bfloat16 on the processor's matrix units. If a transposition came
            before, XLA would merge it into the product and fail at run time.
        out_sharding: Sharding of the result, if it does not follow from the inputs.
    """

    def multiply(a, b):
        return jnp.einsum(
            subscripts,
            a,
            b,
            precision=precision_of(a, b),
            preferred_element_type=jnp.float32,
            out_sharding=out_sharding,
        )

    def widened(a, b):
        return multiply(a.astype(jnp.float32), b.astype(jnp.float32))

    def alike(a, b):
        return multiply(a, b.astype(a.dtype))

    if aligned or a.dtype == jnp.float32:
        return multiply(a, b)
    return lax.platform_dependent(a, b, cpu=widened, default=alike)
