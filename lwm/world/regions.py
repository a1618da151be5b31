"""Regions of one colour in the frames of a clip, and the tracks of things through them."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from lwm.world.attributes import BACKGROUNDS, COLOURS, GRID

LEAST = 30
"""Pixels of the smallest region that is a thing, of `GRID` x `GRID`."""
_NEAR = 26
"""Pixels that a thing moves between two frames, at most."""
_BORDER = 2

Pictures = Float[np.ndarray, "T S S 3"]


class Region(NamedTuple):
    """A thing in a frame: its box, and how far it covers the pixels of the box."""

    frame: int
    left: int
    top: int
    right: int
    bottom: int
    cover: Float[np.ndarray, "h w"]

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, x and y."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def side(self) -> int:
        """Longer side of the box."""
        return max(self.right - self.left, self.bottom - self.top)


@dataclasses.dataclass(kw_only=True)
class Track:
    """A thing through the frames."""

    colour: str
    regions: list[Region]

    @property
    def frames(self) -> list[int]:
        """Frames in which it is seen."""
        return [region.frame for region in self.regions]


def on_grid(pixels: UInt8[np.ndarray, "T R R 3"]) -> Pictures:
    """Returns frames of `GRID` x `GRID` pixels."""
    side = pixels.shape[1]
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


def tracks(pictures: Pictures, background: Float[np.ndarray, " 3"]) -> list[Track]:
    """Returns the things that are seen in the frames."""
    classes, cover = _classes(pictures, background)
    found: list[Track] = []
    for index, region in _regions(classes, cover):
        colour = list(COLOURS)[index]
        near = [
            track
            for track in found
            if track.colour == colour
            and track.regions[-1].frame < region.frame
            and _distance(track.regions[-1], region) < _NEAR
        ]
        if near:
            min(near, key=lambda track: _distance(track.regions[-1], region)).regions.append(region)
        else:
            found.append(Track(colour=colour, regions=[region]))
    least = 2 if len(pictures) >= 6 else 1
    return [track for track in found if len(track.regions) >= least]


def _distance(first: Region, second: Region) -> float:
    (x1, y1), (x2, y2) = first.centre, second.centre
    return max(abs(x1 - x2), abs(y1 - y2))


def _classes(
    pictures: Pictures, background: Float[np.ndarray, " 3"]
) -> tuple[Int[np.ndarray, "T S S"], Float[np.ndarray, "T S S"]]:
    """Returns the index of each pixel's colour, -1 for the background, and its cover.

    A pixel at an edge is a mixture of a colour and the background, and is explained as such.
    """
    towards = np.array(list(COLOURS.values()), np.float32) - background
    lengths = (towards**2).sum(1)
    apart = pictures - background
    share = np.clip(apart @ towards.T / lengths, 0, 1)
    # Squared distance from the best mixture with each colour.
    off = (apart**2).sum(-1, keepdims=True) - share * (2 * (apart @ towards.T) - share * lengths)
    nearest = off.argmin(-1)
    cover = np.take_along_axis(share, nearest[..., None], -1)[..., 0]
    return np.where(cover >= 0.5, nearest, -1), cover


def _regions(
    classes: Int[np.ndarray, "T S S"], cover: Float[np.ndarray, "T S S"]
) -> list[tuple[int, Region]]:
    """Returns connected regions of one colour, frame by frame, without specks."""
    labels = _labels(classes)
    found = []
    for label, count in zip(*np.unique(labels[labels >= 0], return_counts=True), strict=True):
        if count < LEAST:
            continue
        frame = int(label) // GRID**2
        inside = labels[frame] == label
        down, across = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        box = slice(down[0], down[-1] + 1), slice(across[0], across[-1] + 1)
        own = np.where(inside[box], cover[frame][box], 0)
        index = int(classes[frame].ravel()[int(label) % GRID**2])
        ends = across[0], down[0], across[-1] + 1, down[-1] + 1
        found.append((index, Region(frame, *map(int, ends), own)))
    return found


def _labels(classes: Int[np.ndarray, "T S S"]) -> Int[np.ndarray, "T S S"]:
    """Returns for each pixel the first pixel of its region, -1 for the background."""
    start = np.arange(classes.size).reshape(classes.shape)
    labels = np.where(classes >= 0, start, -1)
    down = (classes[:, 1:] == classes[:, :-1]) & (classes[:, 1:] >= 0)
    across = (classes[:, :, 1:] == classes[:, :, :-1]) & (classes[:, :, 1:] >= 0)
    while True:
        before = labels.copy()
        _join(labels[:, 1:], labels[:, :-1], down)
        _join(labels[:, :, 1:], labels[:, :, :-1], across)
        # Each label follows the pixel that it names.
        labels = np.where(labels >= 0, labels.ravel()[labels], -1)
        if np.array_equal(labels, before):
            return labels


def _join(
    first: Int[np.ndarray, "T a b"],
    second: Int[np.ndarray, "T a b"],
    same: Bool[np.ndarray, "T a b"],
) -> None:
    np.minimum(first, second, out=first, where=same)
    np.minimum(first, second, out=second, where=same)
