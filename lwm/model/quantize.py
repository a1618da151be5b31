"""Weights in eight or four bits, converted to the type of the activations where they are used."""

from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Shaped, UInt8

CONTRACTED = {
    "attention.wq": (0,),
    "attention.wk": (0,),
    "attention.wv": (0,),
    "attention.wo": (0, 1),
    "mlp.w_gate": (0,),
    "mlp.w_up": (0,),
    "mlp.w_down": (0,),
    "head": (0,),
}
"""Weights that are quantised, and the dimensions over which a product with each sums."""
GROUP = 32
"""Weights of four bits that share a scale, along the last dimension over which a product sums."""

Bits = Literal[4, 8]


class QuantizedWeight(eqx.Module):
    """Matrix of few bits with scales; has `astype`, as an array does.

    In eight bits, each column has one scale. In four bits, each `GROUP` of a column has one, as in
    GGUF's Q4_0, and a byte holds two weights plus 8: in its lower half the one of its own place in
    the first half of a group, in its upper half the one of the same place in the second half.
    """

    values: Int8[Array, "..."] | UInt8[Array, "..."]
    scale: Float[Array, "..."]
    """Scale that broadcasts against the values: its size is 1 where a product sums. In four bits,
    a 16th of theirs along groups."""

    def astype(self, dtype) -> Float[Array, "..."]:
        """Returns the weight as it was rounded."""
        if self.values.dtype == jnp.int8:
            return self.values.astype(dtype) * self.scale.astype(dtype)
        axis = _axis_of_groups(self.values, self.scale)
        shape = self.values.shape
        pairs = self.values.reshape(*shape[:axis], -1, GROUP // 2, *shape[axis + 1 :])
        levels = jnp.concatenate([pairs & 15, pairs >> 4], axis=axis + 1).astype(dtype) - 8
        wide = levels * jnp.expand_dims(self.scale, axis + 1).astype(dtype)
        return wide.reshape(*shape[:axis], -1, *shape[axis + 1 :])


class Quantized(NamedTuple):
    """Arrays of a `QuantizedWeight`, on the host."""

    values: Shaped[np.ndarray, "..."]
    scale: Float[np.ndarray, "..."]


def quantize(weight: Float[np.ndarray, "..."], contracted: tuple[int, ...]) -> Quantized:
    """Rounds to 255 even steps between ± the largest weight of each column."""
    weight = weight.astype(np.float32)
    largest = np.max(np.abs(weight), axis=contracted, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0).astype(np.float32) / 127
    return Quantized(np.rint(weight / scale).astype(np.int8), scale)


def quantize_to(bits: Bits, weight: Float[np.ndarray, "..."], contracted: tuple[int, ...]):
    """Rounds to so many bits; to eight where four need groups that do not divide the sum."""
    if bits == 4 and has_groups(weight.shape, contracted):
        return _quantize_groups(weight, contracted[-1])
    return quantize(weight, contracted)


def has_groups(shape: tuple[int, ...], contracted: tuple[int, ...]) -> bool:
    """Returns whether a weight of this shape can be stored in four bits."""
    return shape[contracted[-1]] % GROUP == 0


def _quantize_groups(weight: Float[np.ndarray, "..."], axis: int) -> Quantized:
    """Rounds to 16 even steps of which the outermost, -8, is the largest weight of each group."""
    shape = weight.shape
    groups = weight.astype(np.float32).reshape(*shape[:axis], -1, GROUP, *shape[axis + 1 :])
    axis += 1
    place = np.argmax(np.abs(groups), axis=axis, keepdims=True)
    # Rounded before it is used, so that levels are those nearest to what is stored.
    scale = (np.take_along_axis(groups, place, axis) / -8).astype(np.float16)
    divisor = np.where(scale == 0, 1, scale).astype(np.float32)
    levels = np.clip(np.rint(groups / divisor) + 8, 0, 15).astype(np.uint8)
    low, high = np.split(levels, 2, axis=axis)
    packed = (low | high << 4).reshape(*shape[: axis - 1], -1, *shape[axis:])
    return Quantized(packed, np.squeeze(scale, axis))


def _axis_of_groups(values: Array, scale: Array) -> int:
    sizes = zip(values.shape, scale.shape, strict=True)
    return next(axis for axis, (stored, scales) in enumerate(sizes) if stored != scales)
