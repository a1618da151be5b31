"""Caches of bfloat16 as raw bits: to touch one slot, XLA on CPU would widen all the others too."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt16


def to_bits(x: Float[Array, "*A"]) -> Float[Array, "*A"] | UInt16[Array, "*A"]:
    """Returns bfloat16 as the integers that it is stored as, and other types as they are."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(x: Float[Array, "*A"] | UInt16[Array, "*A"]) -> Float[Array, "*A"]:
    """Inverts `to_bits`."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def stored_as(dtype: DTypeLike) -> DTypeLike:
    """The type of what `to_bits` returns."""
    return jnp.uint16 if dtype == jnp.bfloat16 else dtype
