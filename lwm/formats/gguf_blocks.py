"""Blocks of GGUF's types of four, five and eight bits, taken apart without being decoded.

A block holds 32 neighbouring numbers of a row: a scale, for some types a minimum, for those of five
bits the fifth ones, and the levels. See `lwm.model.quantize.QuantizedWeight` for their meaning.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Int8, UInt8, UInt32

BLOCK = 32
_PARTS = {
    "Q8_0": ("scale", "values"),
    "Q4_0": ("scale", "values"),
    "Q4_1": ("scale", "minimum", "values"),
    "Q5_0": ("scale", "high", "values"),
    "Q5_1": ("scale", "minimum", "high", "values"),
}
"""Parts of a block, in their order."""
KINDS = frozenset(_PARTS)
"""Types that can be taken apart."""


class Blocks(NamedTuple):
    """Numbers of rows, block after block."""

    values: Int8[np.ndarray, "rows n"] | UInt8[np.ndarray, "rows m"]
    """Levels of a row; or bytes with those of two numbers that are 16 apart in their block."""
    scale: Float16[np.ndarray, "rows blocks"]
    minimum: Float16[np.ndarray, "rows blocks"] | None
    high: UInt32[np.ndarray, "rows blocks"] | None
    """Fifth bits of a block's numbers, the first one's lowest."""


def take_apart(raw: UInt8[np.ndarray, "rows bytes"], kind: str) -> Blocks:
    """Separates the parts of the blocks of a type in `KINDS`."""
    count = BLOCK if kind == "Q8_0" else BLOCK // 2
    sizes = {"scale": 2, "minimum": 2, "high": 4, "values": count}
    width = sum(sizes[part] for part in _PARTS[kind])
    blocks = raw.reshape(len(raw), -1, width)
    found, start = {}, 0
    for part in _PARTS[kind]:
        found[part] = np.ascontiguousarray(blocks[..., start : start + sizes[part]])
        start += sizes[part]

    def read(part: str, dtype: str) -> np.ndarray | None:
        return found[part].view(dtype)[..., 0] if part in found else None

    values = found["values"].reshape(len(raw), -1)
    scale = read("scale", "<f2")
    assert scale is not None
    return Blocks(
        values=values.view(np.int8) if kind == "Q8_0" else values,
        scale=scale,
        minimum=read("minimum", "<f2"),
        high=read("high", "<u4"),
    )
