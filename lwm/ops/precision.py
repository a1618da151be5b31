"""Precision of products: float32 is float32 on every platform."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def precision_of(a: Array, b: Array) -> lax.Precision | None:
    """Returns the `precision` of a product of two arrays.

    By default XLA multiplies float32 in TF32 on GPUs and in one pass of bfloat16 on TPUs, with 11
    and 8 bits of 24. Two arrays of float32 are therefore multiplied in full, unless JAX has been
    given a default for all products (`jax.default_matmul_precision`,
    `JAX_DEFAULT_MATMUL_PRECISION`). All other products follow that default.
    """
    is_float32 = a.dtype == b.dtype == jnp.float32
    is_left = jax.default_matmul_precision.value is None
    return lax.Precision.HIGHEST if is_float32 and is_left else None
