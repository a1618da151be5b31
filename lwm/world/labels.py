"""Connected regions of pictures: labels of the pixels that are joined to each other."""

import numpy as np
from jaxtyping import Int


def connected(classes: Int[np.ndarray, "T H W"]) -> tuple[Int[np.ndarray, "T H W"], int]:
    """Numbers the regions of neighbouring pixels of one class, from 0, in each frame.

    Works on runs of pixels along rows, of which there are few.

    Args:
        classes: A class for each pixel; those below 0 belong to no region.

    Returns:
        The region of each pixel, -1 where there is none, and the number of regions.
    """
    frames, height, width = classes.shape
    rows = np.full((frames * height, width + 1), -1, classes.dtype)  # no run passes an end
    rows[:, :width] = classes.reshape(-1, width)
    flat = rows.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=-1))
    kept = flat[changes] >= 0
    starts, ends = changes[kept], np.append(changes, flat.size)[1:][kept]
    parents = list(range(len(starts)))
    for one, other in zip(*_touching(starts, ends, flat, height, width + 1), strict=True):
        first, second = _root(parents, one), _root(parents, other)
        parents[max(first, second)] = min(first, second)
    roots = np.array([_root(parents, run) for run in range(len(parents))], int)
    names, numbers = np.unique(roots, return_inverse=True)
    labels = np.full(flat.size, -1)
    labels[np.flatnonzero(flat >= 0)] = np.repeat(numbers, ends - starts)
    return labels.reshape(frames, height, width + 1)[:, :, :width], len(names)


def _touching(
    starts: Int[np.ndarray, " N"],
    ends: Int[np.ndarray, " N"],
    flat: Int[np.ndarray, " S"],
    height: int,
    width: int,
) -> tuple[list[int], list[int]]:
    """Returns pairs of runs of one class that touch from row to row of a frame."""
    # Runs of the row above that end after this one starts, and start before it ends.
    first = np.searchsorted(ends, starts - width, side="right")
    last = np.searchsorted(starts, ends - width, side="left")
    counts = np.where(starts // width % height > 0, np.maximum(last - first, 0), 0)
    one = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts)
    other = np.repeat(first, counts) + within
    same = flat[starts[one]] == flat[starts[other]]
    return one[same].tolist(), other[same].tolist()


def _root(parents: list[int], run: int) -> int:
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run
