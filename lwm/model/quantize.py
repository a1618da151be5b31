"""Weights in eight bits, converted to the type of the activations where they are used."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int8

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


class QuantizedWeight(eqx.Module):
    """Matrix of int8 values with one scale per column; has `astype`, as an array does."""

    values: Int8[Array, "..."]
    scale: Float[Array, "..."]
    """Scale that broadcasts against the values: its size is 1 where a product sums."""

    def astype(self, dtype) -> Float[Array, "..."]:
        """Returns the weight as it was rounded."""
        return self.values.astype(dtype) * self.scale.astype(dtype)


def quantize(
    weight: Float[np.ndarray, "..."], contracted: tuple[int, ...]
) -> tuple[Int8[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Rounds to 255 even steps between ± the largest weight of each column."""
    weight = weight.astype(np.float32)
    largest = np.max(np.abs(weight), axis=contracted, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0).astype(np.float32) / 127
    return np.rint(weight / scale).astype(np.int8), scale
