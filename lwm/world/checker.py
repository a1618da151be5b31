"""Reads the facts of a clip from its pixels alone, and compares facts."""

import functools
import itertools

import numpy as np
from jaxtyping import Float, UInt8

from lwm.world.attributes import GRID, KINDS, SIZES, TURNING
from lwm.world.facts import Facts, Thing
from lwm.world.masks import mask
from lwm.world.regions import Region, Track, backdrop, on_grid, tracks

_PATCH = 16
"""Pixels along a side of the patches in which kinds are compared."""
_LARGE = sum(SIZES.values()) / 2
_CHANGE = 6
"""Pixels by which a thing that grows or shrinks does so, at least."""
_MOVE = 7
"""Pixels that a moving thing moves, at least."""
_TOUCH = 4
"""Pixels between the boxes of two things that touch, at most."""
_MOST = 6
"""Things that are compared with each other in every order, at most."""


def read_facts(pixels: UInt8[np.ndarray, "T R R 3"], *, fps: float) -> Facts:
    """Returns the facts of a rendered or generated clip."""
    pictures = on_grid(pixels)
    background, seen = backdrop(pictures)
    found = tracks(pictures, seen)
    things = [_thing(track, len(pixels)) for track in found]
    things = _with_collisions(things, found, len(pixels))
    return Facts(things=tuple(things), background=background, frames=len(pixels), fps=fps)


def agreement(asked: Facts, seen: Facts) -> dict[str, bool]:
    """Returns for each attribute whether all things asked for are seen with it.

    Things are paired so that as many attributes as possible agree. A thing that is missing
    agrees in nothing; one too many, only the count shows.
    """
    names = ("kind", "colour", "size", "motion", "event", "time")
    best = dict.fromkeys(names, False)
    others = [*seen.things[:_MOST], *[None] * max(0, len(asked.things) - len(seen.things))]
    for order in itertools.permutations(others, len(asked.things)):
        pairs = [_agree(asked, seen, *pair) for pair in zip(asked.things, order, strict=True)]
        scores = {name: all(pair[name] for pair in pairs) for name in names}
        best = max(best, scores, key=lambda each: (sum(each.values()), each["colour"]))
    best["count"] = len(asked.things) == len(seen.things)
    best["background"] = asked.background == seen.background
    return best | {"all": all(best.values())}


def _agree(asked: Facts, seen: Facts, thing: Thing, other: Thing | None) -> dict[str, bool]:
    if other is None:
        return dict.fromkeys(("kind", "colour", "size", "motion", "event", "time"), False)
    same = {
        name: getattr(thing, name) == getattr(other, name)
        for name in ("kind", "colour", "size", "motion", "event")
    }
    return same | {"time": asked.second(thing) == seen.second(other)}


def _thing(track: Track, frames: int) -> Thing:
    """Returns what a track shows, other than collisions."""
    first, last = track.frames[0], track.frames[-1]
    kind, turn = _kind(track.regions)
    size, change, change_frame = _size(track.regions)
    event, frame = None, None
    if first > 0:
        event, frame = "appears", first
    elif last < frames - 1:
        event, frame = "disappears", last + 1
    elif change is not None:
        event, frame = change, change_frame
    elif turn is not None:
        event, frame = "turns", turn
    motion = _motion(track.regions)
    return Thing(kind=kind, colour=track.colour, size=size, motion=motion, event=event, frame=frame)


def _kind(regions: list[Region]) -> tuple[str, int | None]:
    """Returns the kind, and the frame in which it turns, by the best sum of overlaps."""
    upright, turned = _templates()
    patches = np.stack([_patch(region) for region in regions]).reshape(len(regions), -1)
    scores = [-((patches[:, None] - each) ** 2).mean(-1) for each in (upright, turned)]
    whole = scores[0].sum(0)
    kind, best, turn = KINDS[int(whole.argmax())], whole.max(), None
    places = [KINDS.index(each) for each in TURNING]
    for at in range(1, len(regions)):
        sums = (scores[0][:at].sum(0) + scores[1][at:].sum(0))[places]
        if sums.max() > best + 0.05:
            best, kind, turn = sums.max(), TURNING[int(sums.argmax())], regions[at].frame
    return kind, turn


def _patch(region: Region) -> Float[np.ndarray, "P P"]:
    """Returns the cover of the square around a region, in pixels of one number."""
    high, wide = region.cover.shape
    at = (np.arange(_PATCH) + 0.5) / _PATCH - 0.5
    down, across = (np.floor(at * region.side + length / 2).astype(int) for length in (high, wide))
    inside = ((down >= 0) & (down < high))[:, None] & ((across >= 0) & (across < wide))
    cover = region.cover[np.clip(down, 0, high - 1)][:, np.clip(across, 0, wide - 1)]
    return np.where(inside, cover, 0)


@functools.cache
def _templates() -> tuple[Float[np.ndarray, "K D"], Float[np.ndarray, "K D"]]:
    """Returns the patches of all kinds, upright and turned."""
    return tuple(
        np.stack([_template(kind, turned).ravel() for kind in KINDS]) for turned in (False, True)
    )  # pyrefly: ignore[bad-return]


def _template(kind: str, turned: bool) -> Float[np.ndarray, "P P"]:
    cover = mask(kind, GRID, turned).astype(np.float32) / 255
    inside = cover >= 0.5
    down, across = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    ends = across[0], down[0], across[-1] + 1, down[-1] + 1
    box = cover[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    return _patch(Region(0, *map(int, ends), box))


def _size(regions: list[Region]) -> tuple[str, str | None, int | None]:
    """Returns the size at first, and whether and when it changes."""
    sides = np.array([region.side for region in regions], np.float32)
    best, at = 0.0, 0
    for place in range(1, len(sides)):
        step = sides[place:].mean() - sides[:place].mean()
        # Of the possible places, the one that leaves least unexplained.
        gain = step**2 * place * (len(sides) - place) / len(sides)
        if abs(step) > _CHANGE and gain > best:
            best, at = gain, place
    start = sides[:at] if at else sides
    size = "large" if start.mean() > _LARGE else "small"
    if not at:
        return size, None, None
    grows = sides[at:].mean() > start.mean()
    return size, "grows" if grows else "shrinks", regions[at].frame


def _path(regions: list[Region]) -> Float[np.ndarray, "V 2"]:
    return np.array([region.centre for region in regions])


def _motion(regions: list[Region]) -> str:
    path = _path(regions)
    x, y = path[-1] - path[0]
    if max(abs(x), abs(y)) < _MOVE:
        return "still"
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def _with_collisions(things: list[Thing], found: list[Track], frames: int) -> list[Thing]:
    """Returns the things with the collisions of those that stop where another one is."""
    done = list(things)
    for index, (thing, track) in enumerate(zip(things, found, strict=True)):
        if thing.motion == "still" or thing.event is not None:
            continue
        frame = _stop(track.regions, frames)
        if frame is None:
            continue
        for other, (each, beside) in enumerate(zip(things, found, strict=True)):
            if other != index and each.motion == "still" and _touch(track, beside):
                hit = {"event": "collides", "frame": frame}
                done[index] = Thing(**{**vars(thing), **hit})
                done[other] = Thing(**{**vars(each), **hit})
    return done


def _stop(regions: list[Region], frames: int) -> int | None:
    """Returns the frame in which a moving thing comes to rest before the end."""
    path = _path(regions)
    moving = np.abs(path - path[-1]).max(1) > 1
    place = int(moving.nonzero()[0][-1]) + 1
    return regions[place].frame if regions[place].frame < frames - 1 else None


def _touch(track: Track, other: Track) -> bool:
    first, second = track.regions[-1], other.regions[-1]
    across = max(first.left - second.right, second.left - first.right)
    down = max(first.top - second.bottom, second.top - first.bottom)
    return max(across, down) <= _TOUCH
