"""Colours of the pixels of a clip: its background, and what else each pixel is made of."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from lwm.world.attributes import BACKGROUNDS, COLOURS, GRID

_BORDER = 2
_FAINT = 24
"""Distance from the background's colour of a pixel that counts as background."""

Pictures = Float[np.ndarray, "T S S 3"]


class Paint(NamedTuple):
    """Pixels that differ from the background, as mixtures of it and each colour."""

    where: Int[np.ndarray, " P"]
    """Their places in the flattened clip."""
    share: Float[np.ndarray, "P C"]
    """Of the colour in the mixture that comes nearest to the pixel."""
    off: Float[np.ndarray, "P C"]
    """Squared distance of the pixel from that mixture."""

    @property
    def nearest(self) -> Int[np.ndarray, " P"]:
        """Returns the colour that explains each pixel best."""
        return self.off.argmin(1)


def on_grid(pixels: UInt8[np.ndarray, "T R R 3"]) -> Pictures:
    """Returns frames of `GRID` x `GRID` pixels."""
    side = pixels.shape[1]
    if side == GRID:
        return pixels.astype(np.float32)
    if side % GRID == 0:
        step = side // GRID
        parts = pixels.reshape(len(pixels), GRID, step, GRID, step, 3)
        return parts.mean((2, 4), dtype=np.float32)
    at = (2 * np.arange(GRID) + 1) * side // (2 * GRID)
    return pixels[:, at][:, :, at].astype(np.float32)


def backdrop(pictures: Pictures) -> tuple[str, Float[np.ndarray, " 3"]]:
    """Returns the name of the background, and its colour as it is seen at the border."""
    edge = np.ones((GRID, GRID), bool)
    edge[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    seen = np.median(pictures[:, edge].reshape(-1, 3), 0).astype(np.float32)
    known = np.array(list(BACKGROUNDS.values()), np.float32)
    return list(BACKGROUNDS)[int(((known - seen) ** 2).sum(1).argmin())], seen


def paint(pictures: Pictures, background: Float[np.ndarray, " 3"]) -> Paint:
    """Returns the mixtures that explain what is seen before a background.

    A pixel at the edge of a thing is a mixture of its colour and the background, and is of the
    colour on whose line to the background it lies.
    """
    towards = np.array(list(COLOURS.values()), np.float32) - background
    lengths = (towards**2).sum(1)
    apart = (pictures - background).reshape(-1, 3)
    distance = (apart**2).sum(1)
    where = np.flatnonzero(distance > _FAINT**2)
    along = apart[where] @ towards.T
    share = np.clip(along / lengths, 0, 1)
    off = distance[where, None] - share * (2 * along - share * lengths)
    return Paint(where, share, off)
