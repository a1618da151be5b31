"""Keys and values as pages hold them: float32, bfloat16 as bits, or int8 with scales.

Bfloat16 is held as raw bits, since XLA on CPU would convert all of a cache to update one slot. In
int8, the numbers of a token and a head share a scale, the greatest of them over 127. Its four bytes
are held after the numbers, so that a page stays one array.
"""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, UInt16

Keys = Float[Array, "P K H b"] | UInt16[Array, "P K H b"] | Int8[Array, "P K C b"]
Values = Float[Array, "P K b H"] | UInt16[Array, "P K b H"] | Int8[Array, "P K b C"]
"""Pages, as `lwm.ops.paged` describes them; C is `held_size` of H."""
HeldArray = Float[Array, "..."] | UInt16[Array, "..."] | Int8[Array, "..."]
_SCALE = 4
"""Bytes of a scale, in float32."""
_STEP = 1 / 127  # a factor, since XLA would make one of a divisor


def held_type(dtype: DTypeLike) -> DTypeLike:
    """Returns the type of the arrays that hold numbers of a type."""
    return jnp.uint16 if dtype == jnp.bfloat16 else dtype


def held_size(size: int, dtype: DTypeLike) -> int:
    """Returns the numbers that are held for those of a token and a head, with their scale."""
    return size + _SCALE if dtype == jnp.int8 else size


def narrowed(x: Float[Array, "..."], held: DTypeLike, *, axis: int) -> HeldArray:
    """Returns numbers as an array of the type `held` holds them.

    Args:
        x: Keys or values.
        held: As of `held_type`.
        axis: The axis of a head's numbers, which grows by those of `held_size`.
    """
    if held == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    if held != jnp.int8:
        return x.astype(held)
    wide = jnp.moveaxis(x.astype(jnp.float32), axis, -1)
    scale = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) * _STEP
    rounded = jnp.round(wide / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    bits = lax.bitcast_convert_type(scale[..., 0], jnp.int8)
    return jnp.moveaxis(jnp.concatenate([rounded, bits], axis=-1), -1, axis)


def widened(x: HeldArray, dtype: DTypeLike, *, axis: int) -> Float[Array, "..."]:
    """Inverts `narrowed`, but for rounding; returns numbers of a type."""
    if x.dtype == jnp.uint16:
        return lax.bitcast_convert_type(x, jnp.bfloat16).astype(dtype)
    if x.dtype != jnp.int8:
        return x.astype(dtype)
    size = x.shape[axis] - _SCALE
    bits = lax.slice_in_dim(x, size, None, axis=axis)
    scale = lax.bitcast_convert_type(jnp.moveaxis(bits, axis, -1), jnp.float32)
    numbers = lax.slice_in_dim(x, 0, size, axis=axis).astype(jnp.float32)
    return (numbers * jnp.expand_dims(scale, axis)).astype(dtype)
