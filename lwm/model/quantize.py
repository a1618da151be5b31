"""Weights in eight, five or four bits, converted to the type of activations at their use.

Groups of weights along a sum share a scale, as in GGUF's Q8_0, Q5_0, Q5_1, Q4_0 and Q4_1: the same
numbers in another order.
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Shaped, UInt8, UInt32

from lwm.model.config import Held

CONTRACTED = {
    "embedding": (0,),
    "attention.wq": (0,),
    "attention.wk": (0,),
    "attention.wv": (0,),
    "attention.wo": (0, 1),
    "mlp.w_gate": (0,),
    "mlp.w_up": (0,),
    "mlp.w_down": (0,),
    "head": (0,),
}
"""Weights that are quantised, and the dimensions over which a product with each sums; of the
embedding, transposed to D V."""
GROUP = 32
"""Weights that share a scale, along the last dimension over which a product sums."""

Bits = Literal[4, 8]


class QuantizedWeight(eqx.Module):
    """Matrix of few bits with scales; has `astype`, as an array does.

    A weight is `scale * level + minimum`. Without minimum, levels count from the middle of their
    range. A byte of `values` without sign holds two levels of a group: in its lower half the one of
    its own place in the first half of the group, in its upper half that of the same place in the
    second.
    """

    values: Int8[Array, "..."] | UInt8[Array, "..."]
    """Levels; in four and five bits half as many along groups."""
    scale: Float[Array, "..."]
    """A `GROUP`-th of the weights along groups; or of size 1 where a product sums, if groups do not
    divide the sum."""
    minimum: Float[Array, "..."] | None = None
    """Like the scale."""
    high: UInt32[Array, "..."] | None = None
    """Fifth bits of the levels of each group, the first one's lowest."""

    @property
    def kind(self) -> Held:
        """Returns the name of the type."""
        if self.values.dtype == jnp.int8:
            return "int8"
        if self.high is None:
            return "int4" if self.minimum is None else "q4_1"
        return "q5_0" if self.minimum is None else "q5_1"

    def astype(self, dtype) -> Float[Array, "..."]:
        """Returns the weight as it was rounded."""
        axis = self._axis_of_groups()
        if axis is None:
            return self.values.astype(dtype) * self.scale.astype(dtype)
        shape, is_paired = self.values.shape, self.values.dtype == jnp.uint8
        stored = GROUP // 2 if is_paired else GROUP
        groups = self.values.reshape(*shape[:axis], -1, stored, *shape[axis + 1 :])
        levels = self._levels(groups, axis + 1) if is_paired else groups
        wide = levels.astype(dtype) * jnp.expand_dims(self.scale, axis + 1).astype(dtype)
        if self.minimum is not None:
            wide += jnp.expand_dims(self.minimum, axis + 1).astype(dtype)
        return wide.reshape(*shape[:axis], -1, *shape[axis + 1 :])

    def _levels(self, pairs: UInt8[Array, "..."], axis: int) -> Int8[Array, "..."]:
        """Takes pairs of levels apart along an axis."""
        levels = jnp.concatenate([pairs & 15, pairs >> 4], axis=axis)
        if self.high is not None:
            places = jnp.arange(GROUP, dtype=jnp.uint32)
            places = places.reshape(-1, *[1] * (pairs.ndim - axis - 1))
            fifth = jnp.expand_dims(self.high, axis) >> places & 1
            levels |= (fifth << 4).astype(jnp.uint8)
        middle = 8 if self.high is None else 16
        return levels.astype(jnp.int8) - (middle if self.minimum is None else 0)

    def _axis_of_groups(self) -> int | None:
        """Returns the axis of groups; None if each column has one scale."""
        sizes = enumerate(zip(self.values.shape, self.scale.shape, strict=True))
        is_paired = self.values.dtype == jnp.uint8
        fits = (axis for axis, (stored, scales) in sizes if stored != scales)
        axis = next(fits, None)
        if axis is not None and not is_paired and self.scale.dtype == jnp.float32:
            return None
        return axis


class Quantized(NamedTuple):
    """Arrays of a `QuantizedWeight`, on the host."""

    values: Shaped[np.ndarray, "..."]
    scale: Float[np.ndarray, "..."]
    minimum: Float[np.ndarray, "..."] | None = None
    high: Shaped[np.ndarray, "..."] | None = None


def quantize_to(
    bits: Bits, weight: Float[np.ndarray, "..."], contracted: tuple[int, ...]
) -> Quantized:
    """Rounds to so many bits; to eight with one scale a column where groups do not fit the sum."""
    if not has_groups(weight.shape, contracted):
        return _quantize_columns(weight, contracted)
    shape, axis = weight.shape, contracted[-1]
    groups = weight.astype(np.float32).reshape(*shape[:axis], -1, GROUP, *shape[axis + 1 :])
    levels, scale = (_in_eight_bits if bits == 8 else _in_four_bits)(groups, axis + 1)
    return Quantized(
        levels.reshape(*shape[:axis], -1, *shape[axis + 1 :]), np.squeeze(scale, axis + 1)
    )


def has_groups(shape: tuple[int, ...], contracted: tuple[int, ...]) -> bool:
    """Returns whether whole groups fit a weight of this shape."""
    return shape[contracted[-1]] % GROUP == 0


def _quantize_columns(weight: Float[np.ndarray, "..."], contracted: tuple[int, ...]) -> Quantized:
    """Rounds to 255 even steps between ± the largest weight of each column."""
    weight = weight.astype(np.float32)
    largest = np.max(np.abs(weight), axis=contracted, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0).astype(np.float32) / 127
    return Quantized(np.rint(weight / scale).astype(np.int8), scale)


def _in_eight_bits(groups: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Rounds to 255 even steps between ± the largest weight of each group."""
    # Rounded before it is used, so that levels are those nearest to what is stored.
    scale = (np.max(np.abs(groups), axis=axis, keepdims=True) / 127).astype(np.float16)
    levels = np.rint(groups / _divisor(scale))
    return np.clip(levels, -127, 127).astype(np.int8), scale


def _in_four_bits(groups: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Rounds to 16 even steps of which the outermost, -8, is the largest weight of each group."""
    place = np.argmax(np.abs(groups), axis=axis, keepdims=True)
    scale = (np.take_along_axis(groups, place, axis) / -8).astype(np.float16)
    levels = np.clip(np.rint(groups / _divisor(scale)) + 8, 0, 15).astype(np.uint8)
    low, high = np.split(levels, 2, axis=axis)
    return low | high << 4, scale


def _divisor(scale: np.ndarray) -> np.ndarray:
    return np.where(scale == 0, 1, scale).astype(np.float32)
