"""Masks of all kinds of things at any size, with smooth edges, out of integers alone."""

import functools

import numpy as np
from jaxtyping import Bool, Int, UInt8

from lwm.world.bitmaps import BITMAPS

_FINE = 8
"""Samples along a side of a pixel."""
_UNIT = 1000
"""Shapes are in coordinates of 0 to 1000, and x grows to the right, y downwards."""
_POLYGONS = {
    "square": [[(0, 0), (1000, 0), (1000, 1000), (0, 1000)]],
    "triangle": [[(500, 0), (1000, 1000), (0, 1000)]],
    "diamond": [[(500, 0), (1000, 500), (500, 1000), (0, 500)]],
    "cross": [
        [(320, 0), (680, 0), (680, 1000), (320, 1000)],
        [(0, 320), (1000, 320), (1000, 680), (0, 680)],
    ],
    "heart": [[(26, 420), (500, 250), (974, 420), (500, 1000)]],
}
_STAR = [
    *[(500, 0), (625, 355), (1000, 362), (702, 590), (809, 951)],
    *[(500, 740), (191, 951), (298, 590), (0, 362), (375, 355)],
]


@functools.lru_cache(maxsize=1024)
def mask(kind: str, side: int, turned: bool = False) -> UInt8[np.ndarray, "S S"]:
    """Returns how far a thing covers each pixel of its square: 0 to 255.

    Args:
        kind: A kind of `attributes.KINDS`.
        side: Pixels of the square, which the thing touches on two opposite sides.
        turned: By a quarter, clockwise.
    """
    fine = _covered(kind, side * _FINE)
    shares = fine.reshape(side, _FINE, side, _FINE).sum((1, 3), dtype=np.int64)
    pixels = ((shares * 255 + _FINE**2 // 2) // _FINE**2).astype(np.uint8)
    pixels = np.rot90(pixels, -1) if turned else pixels
    pixels = np.ascontiguousarray(pixels)
    pixels.setflags(write=False)
    return pixels


def _covered(kind: str, samples: int) -> Bool[np.ndarray, "N N"]:
    # Centres of the samples, in halves of 1/samples of a unit so that all are integers.
    at = (2 * np.arange(samples, dtype=np.int64) + 1) * _UNIT
    x, y, scale = at[None, :], at[:, None], 2 * samples
    if kind in BITMAPS:
        return _bitmap(kind, samples)
    if kind == "circle":
        return _disc(x, y, (500, 500, 500), scale)
    if kind == "moon":
        return _disc(x, y, (500, 500, 500), scale) & ~_disc(x, y, (790, 390, 430), scale)
    if kind == "star":
        return _polygon(x, y, _STAR, scale)
    inside = np.zeros((samples, samples), bool)
    for polygon in _POLYGONS[kind]:
        inside |= _polygon(x, y, polygon, scale)
    if kind == "heart":
        for disc in ((260, 280, 260), (740, 280, 260)):
            inside |= _disc(x, y, disc, scale)
    return inside


def _disc(
    x: Int[np.ndarray, "1 N"], y: Int[np.ndarray, "N 1"], disc: tuple[int, int, int], scale: int
) -> Bool[np.ndarray, "N N"]:
    left, top, radius = (value * scale for value in disc)
    return (x - left) ** 2 + (y - top) ** 2 <= radius**2


def _polygon(
    x: Int[np.ndarray, "1 N"],
    y: Int[np.ndarray, "N 1"],
    corners: list[tuple[int, int]],
    scale: int,
) -> Bool[np.ndarray, "N N"]:
    """Returns the samples inside, by the parity of edges to their right."""
    inside = np.zeros((y.size, x.size), bool)
    points = [(left * scale, top * scale) for left, top in corners]
    for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
        if y1 > y2:
            (x1, y1), (x2, y2) = (x2, y2), (x1, y1)
        spans = (y1 <= y) & (y < y2)
        inside ^= spans & ((x - x1) * (y2 - y1) < (x2 - x1) * (y - y1))
    return inside


def _bitmap(kind: str, samples: int) -> Bool[np.ndarray, "N N"]:
    """Returns a bitmap that touches two opposite sides of the square, centred on the others."""
    rows = np.array([[letter == "#" for letter in row] for row in BITMAPS[kind]])
    longer = max(rows.shape)
    places = []
    for length in rows.shape:
        # Index of the bitmap's row or column; outside it where the bitmap is the shorter.
        twice = 2 * longer * np.arange(samples) + longer - samples * (longer - length)
        places.append(twice // (2 * samples))
    down, across = places
    within = ((down >= 0) & (down < rows.shape[0]))[:, None] & (
        (across >= 0) & (across < rows.shape[1])
    )
    clipped = rows[np.clip(down, 0, rows.shape[0] - 1)][:, np.clip(across, 0, rows.shape[1] - 1)]
    return clipped & within
