"""Weights of few bits: rounded on the host, or as a GGUF file stores them."""

import math
import re
from typing import Literal

import numpy as np

from lwm.formats.gguf_blocks import Blocks
from lwm.model.quantize import CONTRACTED, GROUP, Bits, Quantized

Few = Bits | Literal["stored"]
"""Bits to round to, or `stored` for the types in the files."""


def contracted_by(path: str) -> tuple[int, ...] | None:
    """Returns the dimensions that products with a weight sum over; None if it is never rounded."""
    return CONTRACTED.get(re.sub(r"^blocks\.\d+\.", "", path))


def from_blocks(
    blocks: Blocks, shape: tuple[int, ...], contracted: tuple[int, ...]
) -> Quantized | None:
    """Returns the blocks of a matrix as the model has them; None if heads would cut groups.

    Args:
        blocks: Of GGUF's matrix, whose rows are columns here.
        shape: Of the model's weight, whose last columns may be padding.
        contracted: Dimensions that a product sums over.
    """
    depth = math.prod(shape[axis] for axis in contracted)
    axis = contracted[-1]
    if shape[axis] % GROUP:
        return None

    def turned(x: np.ndarray | None) -> np.ndarray | None:
        if x is None:
            return None
        missing = math.prod(shape) // depth - len(x)
        columns = np.pad(x.T, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(x.T)
        sizes = list(shape)
        sizes[axis] = shape[axis] * x.shape[1] // depth
        return columns.reshape(sizes)

    return Quantized._make(map(turned, blocks))
