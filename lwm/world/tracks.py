"""Things in the frames of a clip, followed from frame to frame."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lwm.world.attributes import COLOURS, GRID
from lwm.world.labels import connected
from lwm.world.paint import Paint, Pictures, paint

LEAST = 30
"""Pixels of the smallest region that is a thing, of `GRID` x `GRID`."""
_SOLID = 0.5
"""Share of a colour in a pixel that belongs to a thing, at least."""
_FAR = 26
"""Pixels that a thing moves between two frames, at most."""
_MISSED = 2
"""Frames after which a thing of uncertain colour is another one."""
_INNER = 3
"""Weight of pixels inside a region for its colour, beyond that of its edge."""
_AREA = GRID * GRID


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """Joined pixels of a frame that differ from the background."""

    frame: int
    rows: Int[np.ndarray, " N"]
    """Its pixels, as rows of the clip's `Paint`."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom; the latter two are not included."""
    votes: Float[np.ndarray, " C"]
    """Weight of each colour."""

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, x and y."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def side(self) -> int:
        """Longer side of the box."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


@dataclasses.dataclass(kw_only=True)
class Track:
    """A thing through the frames."""

    regions: list[Region]

    @property
    def colour(self) -> int:
        """Index of the colour that most of its pixels have, over all frames."""
        return int(np.sum([region.votes for region in self.regions], 0).argmax())


def tracks(
    pictures: Pictures, background: Float[np.ndarray, " 3"]
) -> tuple[list[Track], list[Float[np.ndarray, "T S S"]]]:
    """Returns the things that are seen in the frames, and how far each covers every pixel."""
    mixtures = paint(pictures, background)
    by_frame: list[list[Region]] = [[] for _ in pictures]
    for region in _regions(mixtures, len(pictures)):
        by_frame[region.frame].append(region)
    found: list[Track] = []
    for regions in by_frame:
        _join(found, regions, mixtures)
    least = 2 if len(pictures) >= 6 else 1
    found = [track for track in found if len(track.regions) >= least]
    return found, _covers(found, mixtures, len(pictures))


def gap(first: Region, second: Region) -> int:
    """Returns the pixels between the boxes of two regions, below 0 where they overlap."""
    (left, top, right, bottom), (left2, top2, right2, bottom2) = first.box, second.box
    return max(left - right2, left2 - right, top - bottom2, top2 - bottom)


def _regions(mixtures: Paint, frames: int) -> Iterator[Region]:
    """Yields the regions of a clip that are no specks, in the order of the frames."""
    nearest = mixtures.nearest
    solid = mixtures.share[np.arange(len(nearest)), nearest] >= _SOLID
    seen = np.zeros(frames * _AREA, bool)
    seen[mixtures.where[solid]] = True
    seen = seen.reshape(frames, GRID, GRID)
    labels, count = connected(np.where(_around(seen), 0, -1))
    of_row = np.full(len(nearest), -1)
    of_row[solid] = labels.ravel()[mixtures.where[solid]]
    weights = np.where(_inside(seen).ravel()[mixtures.where], 1.0 + _INNER, 1.0)
    cells = of_row[solid] * len(COLOURS) + nearest[solid]
    votes = np.bincount(cells, weights[solid], count * len(COLOURS))
    votes = votes.reshape(count, len(COLOURS))
    order = np.argsort(of_row, kind="stable")
    starts = np.searchsorted(of_row[order], np.arange(count + 1))
    for label in np.flatnonzero(np.diff(starts) >= LEAST):
        yield _region(mixtures, order[starts[label] : starts[label + 1]], votes[label])


def _region(mixtures: Paint, rows: Int[np.ndarray, " N"], votes: Float[np.ndarray, " C"]) -> Region:
    places = mixtures.where[rows]
    down, across = places // GRID % GRID, places % GRID
    box = int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1
    return Region(frame=int(places[0]) // _AREA, rows=rows, box=box, votes=votes)


def _around(seen: Bool[np.ndarray, "T S S"]) -> Bool[np.ndarray, "T S S"]:
    """Returns the pixels and their neighbours, which close the gaps inside of things."""
    wider = seen.copy()
    wider[:, 1:] |= seen[:, :-1]
    wider[:, :-1] |= seen[:, 1:]
    wider[:, :, 1:] |= seen[:, :, :-1]
    wider[:, :, :-1] |= seen[:, :, 1:]
    return wider


def _inside(seen: Bool[np.ndarray, "T S S"]) -> Bool[np.ndarray, "T S S"]:
    """Returns the pixels with all four neighbours."""
    inner = seen.copy()
    inner[:, 1:] &= seen[:, :-1]
    inner[:, :-1] &= seen[:, 1:]
    inner[:, :, 1:] &= seen[:, :, :-1]
    inner[:, :, :-1] &= seen[:, :, 1:]
    return inner


def _join(found: list[Track], regions: Sequence[Region], mixtures: Paint) -> None:
    """Joins the regions of the next frame to the tracks, nearest first, and starts new ones.

    First come regions of a track's colour. A track that finds none takes its part of a region
    that it touches and that has its colour, too; and else a region whose colour may be unsure.
    """
    pairs = sorted(
        (apart, track, place)
        for track in range(len(found))
        for place, region in enumerate(regions)
        if (apart := _distance(found[track].regions[-1], region)) <= _FAR
    )
    colours = [track.colour for track in found]
    owners: dict[int, list[int]] = {}
    placed: set[int] = set()
    for step in range(3):
        for _, track, place in pairs:
            last, region = found[track].regions[-1], regions[place]
            like = colours[track] == int(region.votes.argmax())
            shares = gap(last, region) <= 2 and region.votes[colours[track]] >= LEAST // 2
            recent = region.frame - last.frame <= _MISSED
            free = place not in owners
            fits = (like and free, shares and not free, recent and free)[step]
            if fits and track not in placed:
                owners.setdefault(place, []).append(track)
                placed.add(track)
    for place, region in enumerate(regions):
        own = owners.get(place, [])
        if not own:
            found.append(Track(regions=[region]))
            continue
        parts = _parts(region, [colours[track] for track in own], mixtures)
        for track, part in zip(own, parts, strict=True):
            if part is not None:
                found[track].regions.append(part)


def _distance(first: Region, second: Region) -> float:
    (x1, y1), (x2, y2) = first.centre, second.centre
    return max(abs(x1 - x2), abs(y1 - y2))


def _parts(region: Region, colours: Sequence[int], mixtures: Paint) -> list[Region | None]:
    """Returns the parts of a region in some colours, the first one being whole if it is alone."""
    if len(set(colours)) < 2:
        return [region, *[None] * (len(colours) - 1)]
    left, top, right, bottom = region.box
    places = mixtures.where[region.rows] % _AREA
    at = places // GRID - top, places % GRID - left
    closest = mixtures.off[region.rows][:, list(colours)].argmin(1)
    classes = np.full((1, bottom - top, right - left), -1)
    classes[0][at] = closest
    labels, _ = connected(classes)
    own = labels[0][at]
    parts: list[Region | None] = []
    for index, colour in enumerate(colours):
        sizes = np.bincount(own[closest == index], minlength=1)
        rows = region.rows[own == sizes.argmax()]
        votes = np.zeros(len(COLOURS))
        votes[colour] = len(rows)
        parts.append(_region(mixtures, rows, votes) if sizes.max() >= LEAST // 2 else None)
    return parts if parts[0] is not None and any(parts[1:]) else [region, *parts[1:]]


def _covers(
    found: Sequence[Track], mixtures: Paint, frames: int
) -> list[Float[np.ndarray, "T S S"]]:
    """Returns for each track how far it covers the pixels, faint ones around it included."""
    owner = np.full(len(mixtures.where), -1)
    for index, track in enumerate(found):
        for region in track.regions:
            owner[region.rows] = index
    covers = []
    for index, track in enumerate(found):
        cover = np.zeros(frames * _AREA, np.float32)
        own = (owner == index) | (owner < 0)
        cover[mixtures.where[own]] = mixtures.share[own, track.colour]
        covers.append(cover.reshape(frames, GRID, GRID))
    return covers
