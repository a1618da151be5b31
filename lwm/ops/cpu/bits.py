"""Bfloat16 caches as raw bits: to update one slot, XLA on CPU would convert all of them."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt16


def to_bits(x: Float[Array, "*A"]) -> Float[Array, "*A"] | UInt16[Array, "*A"]:
    """Returns bfloat16 as integers of the same bits, and other types unchanged."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(x: Float[Array, "*A"] | UInt16[Array, "*A"]) -> Float[Array, "*A"]:
    """Inverts `to_bits`."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def stored_as(dtype: DTypeLike) -> DTypeLike:
    """Returns the type of the result of `to_bits`."""
    return jnp.uint16 if dtype == jnp.bfloat16 else dtype
