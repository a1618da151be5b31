"""Reads the facts of a clip from its pixels alone, and compares facts."""

import dataclasses
import functools
import itertools

import numpy as np
from jaxtyping import Float, UInt8

from lwm.world.attributes import COLOURS, KINDS, NEEDLE, SIZES, TURNING
from lwm.world.facts import Facts, Thing
from lwm.world.masks import mask
from lwm.world.paint import backdrop, on_grid
from lwm.world.tracks import Region, Track, gap, tracks

_PATCH = 16
"""Pixels along a side of the patches in which kinds are compared."""
_SIDES = *SIZES.values(), NEEDLE
_SHIFTS = np.array(list(itertools.product((-1, 0, 1), repeat=2)))
"""Places beside a region's centre, in pixels, at which kinds are compared, too."""
_PAD = 16
_BLUR = 2
"""Weight of a pixel of a patch beside a weight of 1 for each of its neighbours."""
_TURNED = 0.3
"""Sum of correlations by which a turn explains a clip better than none, at least."""
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
    found, covers = tracks(pictures, seen)
    things = [_thing(*each) for each in zip(found, covers, strict=True)]
    things = _with_collisions(things, found, len(pixels))
    return Facts(things=tuple(things), background=background, frames=len(pixels), fps=fps)


def agreement(asked: Facts, seen: Facts) -> dict[str, bool]:
    """Returns for each attribute whether all things asked for are seen with it.

    Things are paired so that as many attributes as possible agree. A thing that is missing
    agrees in nothing; one too many, only the count shows.
    """
    names = ("kind", "colour", "size", "motion", "event", "time")
    best = dict.fromkeys(names, False)
    colours = {thing.colour for thing in asked.things}
    likely = sorted(seen.things, key=lambda thing: thing.colour not in colours)[:_MOST]
    others = [*likely, *[None] * max(0, len(asked.things) - len(seen.things))]
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


def _thing(track: Track, cover: Float[np.ndarray, "T S S"]) -> Thing:
    """Returns what a track shows, other than collisions."""
    first, last = track.regions[0].frame, track.regions[-1].frame
    kind, turn = _kind(track.regions, cover)
    size, change, change_frame = _size(track.regions)
    event, frame = None, None
    if first > 0:
        event, frame = "appears", first
    elif last < len(cover) - 1:
        event, frame = "disappears", last + 1
    elif change is not None:
        event, frame = change, change_frame
    elif turn is not None:
        event, frame = "turns", turn
    motion = _motion(track.regions)
    return Thing(
        kind=kind,
        colour=list(COLOURS)[track.colour],
        size=size,
        motion=motion,
        event=event,
        frame=frame,
    )


def _kind(regions: list[Region], cover: Float[np.ndarray, "T S S"]) -> tuple[str, int | None]:
    """Returns the kind, and the frame in which it turns, by the best sum of likenesses."""
    upright, turned = _likeness(regions, cover)
    whole = upright.sum(0)
    places = [KINDS.index(each) for each in TURNING]
    # Scores by frame of the turn and kind.
    before, after = upright[:, places].cumsum(0), turned[::-1, places].cumsum(0)[::-1]
    sums = before[:-1] + after[1:]
    if not sums.size or sums.max() < whole.max() + _TURNED:
        return KINDS[int(whole.argmax())], None
    at, place = np.unravel_index(sums.argmax(), sums.shape)
    return TURNING[place], regions[at + 1].frame


def _likeness(
    regions: list[Region], cover: Float[np.ndarray, "T S S"]
) -> tuple[Float[np.ndarray, "V K"], Float[np.ndarray, "V K"]]:
    """Returns the correlation with each kind, upright and turned, at the best of near places."""
    scores = (_patches(regions, cover) @ _templates().T).max(1)
    return scores[:, : len(KINDS)], scores[:, len(KINDS) :]


def _patches(
    regions: list[Region], cover: Float[np.ndarray, "T S S"]
) -> Float[np.ndarray, "V M D"]:
    """Returns the squares around regions and around places beside them, in `_PATCH` pixels."""
    frames = np.array([region.frame for region in regions])
    centres = np.array([region.centre[::-1] for region in regions])
    sides = np.array([_side(region) for region in regions])
    padded = np.pad(cover[frames], ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    steps = ((np.arange(_PATCH) + 0.5) / _PATCH - 0.5) * sides[:, None]
    # V regions, M places beside each, rows and columns of the patch.
    at = centres[:, None, :, None] + _SHIFTS[None, :, :, None] + steps[:, None, None] + _PAD
    at = np.clip(at.astype(int), 0, padded.shape[1] - 1)
    which = np.arange(len(regions))[:, None, None, None]
    patches = padded[which, at[:, :, 0, :, None], at[:, :, 1, None, :]]
    return _even(patches)


def _side(region: Region) -> int:
    """Returns the side of the square of a thing, as a rule one of the known ones."""
    side = min(_SIDES, key=lambda each: abs(each - region.side))
    return side if abs(side - region.side) <= side / 4 else region.side


def _even(patches: Float[np.ndarray, "*M P P"]) -> Float[np.ndarray, "*M D"]:
    """Returns patches with a mean of 0 and a length of 1, a little blurred."""
    wide = np.pad(patches, [(0, 0)] * (patches.ndim - 2) + [(1, 1)] * 2)
    rows = wide[..., :-2, :] + _BLUR * wide[..., 1:-1, :] + wide[..., 2:, :]
    flat = rows[..., :-2] + _BLUR * rows[..., 1:-1] + rows[..., 2:]
    flat = flat.reshape(*patches.shape[:-2], -1)
    flat = flat - flat.mean(-1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)


@functools.cache
def _templates() -> Float[np.ndarray, "N D"]:
    """Returns the patches of all kinds, upright and then turned."""
    covers = [mask(kind, _PATCH, turned) for turned in (False, True) for kind in KINDS]
    return _even(np.stack(covers).astype(np.float32) / 255)


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
        beside = {
            other: gap(track.regions[-1], each.regions[-1])
            for other, each in enumerate(found)
            if things[other].motion == "still" and things[other].event is None
        }
        other = min(beside, key=beside.__getitem__, default=None)
        if frame is None or other is None or beside[other] > _TOUCH:
            continue
        for place in (index, other):
            done[place] = dataclasses.replace(things[place], event="collides", frame=frame)
    return done


def _stop(regions: list[Region], frames: int) -> int | None:
    """Returns the frame in which a moving thing comes to rest before the end."""
    path = _path(regions)
    moving = np.abs(path - path[-1]).max(1) > 1
    place = int(moving.nonzero()[0][-1]) + 1
    return regions[place].frame if regions[place].frame < frames - 1 else None
