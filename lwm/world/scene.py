"""Plans a scene: its things, what each does, and where it is in every frame; nothing overlaps."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lwm.world.attributes import (
    COLOURS,
    DIRECTIONS,
    EVENTS,
    GRID,
    MOTIONS,
    SIZES,
    TURNING,
    Split,
    in_split,
    is_held_out,
)
from lwm.world.choices import Choices
from lwm.world.facts import Facts, Thing
from lwm.world.masks import mask

EDGE = 2
"""Units between a thing and the edge of the picture, at least."""
GAP = 4
"""Units between two things that do not collide, at least."""
TRAVEL = 14, 22
"""Units that a moving thing moves."""
_TRIES = 5
STEP = 2
"""Places are multiples of it, so that frames are made of fewer different patches."""
EVENT_FRAMES = 6
"""Frames of the shortest clip in which things turn, grow, shrink, appear, disappear or collide."""


class Pose(NamedTuple):
    """Place of a thing in a frame, in units of the grid."""

    x: int
    """Of the centre."""
    y: int
    side: int
    turned: bool


Poses = list[Pose | None]
"""A pose for each frame; None where the thing is not there."""


class Scene(NamedTuple):
    """Facts of a clip, and the poses of each of its things."""

    facts: Facts
    actors: list[tuple[Thing, Poses]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Limits on scenes."""

    split: Split
    kinds: Sequence[str]
    backgrounds: Sequence[str]
    most: int
    frames: int
    fps: float


class _Group(NamedTuple):
    """Things that are placed together, with poses from the corner of the box that they need."""

    actors: list[tuple[Thing, Poses]]
    width: int
    height: int


def plan(choices: Choices, setting: Setting) -> Scene:
    """Returns a scene by random choices."""
    background = choices.choice(setting.backgrounds)
    cast = _cast(choices, setting)
    collide = choices.chance(0.25)  # now, since things that collide find room more easily
    actors = None
    while actors is None:
        groups = _acts(choices, setting, cast, collide)
        for _ in range(_TRIES):
            actors = actors or _placed(choices, groups)
    things = tuple(thing for thing, _ in actors)
    facts = Facts(things=things, background=background, frames=setting.frames, fps=setting.fps)
    return Scene(facts, actors)


def _cast(choices: Choices, setting: Setting) -> list[tuple[str, str]]:
    """Returns kinds and colours; colours differ, and two or three things may be of one kind."""
    count = choices.between(1, setting.most)
    alike = choices.chance(0.45)
    cast: list[tuple[str, str]] = []
    while len(cast) < count:
        free = [colour for colour in COLOURS if colour not in {colour for _, colour in cast}]
        kinds = [
            kind
            for kind in setting.kinds
            if any(in_split(kind, colour, setting.split) for colour in free)
        ]
        if not kinds:
            break  # few kinds were asked for
        kind = cast[0][0] if alike and cast and cast[0][0] in kinds else choices.choice(kinds)
        colours = [colour for colour in free if in_split(kind, colour, setting.split)]
        cast.append((kind, choices.choice(colours)))
        alike = alike and choices.chance(0.7)
    return cast


def _acts(
    choices: Choices, setting: Setting, cast: list[tuple[str, str]], collide: bool
) -> list[_Group]:
    """Returns what each thing does."""
    groups, times = [], []
    rest = choices.shuffled(cast)
    large = 0.5 if len(cast) < 3 else 0.25
    if collide and len(rest) >= 2 and setting.frames >= EVENT_FRAMES:
        group = _collision(choices, setting, rest[:2])
        if group is not None:
            groups.append(group)
            times.append(group.actors[0][0].frame)
            rest = rest[2:]
    for kind, colour in rest:
        event, frame = _event(choices, setting, kind, times)
        motion = _motion(choices, setting, kind)
        size = "large" if choices.chance(large) else "small"
        if event in ("appears", "disappears"):
            motion = "still"
        if event in ("grows", "shrinks"):
            size = "small" if event == "grows" else "large"
        if frame is not None:
            times.append(frame)
        thing = Thing(kind=kind, colour=colour, size=size, motion=motion, event=event, frame=frame)
        groups.append(_alone(thing, setting.frames, _travel(choices)))
    return groups


def _allowed(setting: Setting, kind: str, names: Sequence[str]) -> list[str]:
    """Returns those that things of a kind do in the split."""
    return [name for name in names if setting.split == "heldout" or not is_held_out(kind, name)]


def _event(
    choices: Choices, setting: Setting, kind: str, times: Sequence[int | None]
) -> tuple[str | None, int | None]:
    events = _allowed(setting, kind, [event for event in EVENTS if event != "collides"])
    if kind not in TURNING:
        events = [event for event in events if event != "turns"]
    if setting.frames < EVENT_FRAMES or not choices.chance(0.55):
        return None, None
    frame = _frame(choices, setting, times)
    return (choices.choice(events), frame) if frame is not None else (None, None)


def _frame(choices: Choices, setting: Setting, times: Sequence[int | None]) -> int | None:
    """Returns the frame of an event, each second of the clip being as likely as another."""
    frames = [
        frame
        for frame in range(2, setting.frames - 1)
        if all(time is None or abs(frame - time) >= 2 for time in times)
    ]
    if not frames:
        return None
    second = choices.choice(sorted({int(frame / setting.fps) for frame in frames}))
    return choices.choice([frame for frame in frames if int(frame / setting.fps) == second])


def _motion(choices: Choices, setting: Setting, kind: str) -> str:
    return choices.choice(_allowed(setting, kind, MOTIONS)) if setting.frames > 1 else "still"


def _alone(thing: Thing, frames: int, travel: int) -> _Group:
    """Returns a group of one thing."""
    before = frames if thing.frame is None else thing.frame
    sides = [SIZES[thing.size]] * frames
    if thing.event in ("grows", "shrinks"):
        other = SIZES["large" if thing.event == "grows" else "small"]
        sides = sides[:before] + [other] * (frames - before)
    box = max(sides)
    poses: Poses = []
    steps = _steps(travel, frames - 1, frames)
    for t, (side, step) in enumerate(zip(sides, steps, strict=True)):
        after = t >= before
        gone = (thing.event == "appears" and not after) or (thing.event == "disappears" and after)
        x, y = _moved(thing.motion, step, travel)
        turned = thing.event == "turns" and after
        poses.append(None if gone else Pose(x + box // 2, y + box // 2, side, turned))
    wide, high = _room(thing.motion, travel)
    return _Group([(thing, poses)], box + wide, box + high)


def _travel(choices: Choices) -> int:
    low, high = TRAVEL
    return low + STEP * choices.below((high - low) // STEP + 1)


def _steps(travel: int, arrival: int, frames: int) -> list[int]:
    """Returns the way from the start by frame, at an even speed until arrival."""
    return [travel * min(t, arrival) // max(STEP * arrival, 1) * STEP for t in range(frames)]


def _moved(motion: str, step: int, travel: int) -> tuple[int, int]:
    x = {"right": step, "left": travel - step}.get(motion, 0)
    y = {"down": step, "up": travel - step}.get(motion, 0)
    return x, y


def _room(motion: str, travel: int) -> tuple[int, int]:
    return (
        travel if motion in ("left", "right") else 0,
        travel if motion in ("up", "down") else 0,
    )


def _collision(
    choices: Choices, setting: Setting, pair: Sequence[tuple[str, str]]
) -> _Group | None:
    """Returns two things of which the first moves until it touches the second; None if held out."""
    (kind, colour), (other_kind, other_colour) = pair
    directions = _allowed(setting, kind, DIRECTIONS)
    if not all(_allowed(setting, each, ["collides"]) for each in (kind, other_kind)):
        return None
    motion = choices.choice(directions)
    frame = _frame(choices, setting, ())
    if frame is None:
        return None
    size, other_size = choices.choice([("small", "small"), ("small", "large"), ("large", "small")])
    mover = Thing(kind=kind, colour=colour, size=size, motion=motion, event="collides", frame=frame)
    other = Thing(
        kind=other_kind, colour=other_colour, size=other_size, motion="still", event="collides",
        frame=frame,
    )  # fmt: skip
    room = GRID - 2 * EDGE - SIZES[size] - SIZES[other_size]
    travel = min(STEP * choices.between(2, 3) * frame, room)
    return _touching(mover, other, setting.frames, travel // STEP * STEP)


def _touching(mover: Thing, other: Thing, frames: int, travel: int) -> _Group:
    """Returns the poses of a collision."""
    side, other_side = SIZES[mover.size], SIZES[other.size]
    # A unit may be left between them, so that both stand on a multiple of the step.
    apart = side + travel - _hollow(mover, other) // STEP * STEP
    length, breadth = apart + other_side, max(side, other_side)
    forward = mover.motion in ("right", "down")
    poses: tuple[Poses, Poses] = [], []
    for step in _steps(travel, mover.frame or 0, frames):
        for each, (at, size) in zip(
            poses, ((step + side // 2, side), (apart + other_side // 2, other_side)), strict=True
        ):
            along = at if forward else length - at
            x, y = (along, breadth // 2)
            if mover.motion in ("up", "down"):
                x, y = y, x
            each.append(Pose(x, y, size, False))
    box = (length, breadth) if mover.motion in ("left", "right") else (breadth, length)
    return _Group([(mover, poses[0]), (other, poses[1])], *box)


def _hollow(mover: Thing, other: Thing) -> int:
    """Returns how far the squares of two things overlap when the things touch."""
    turns = {"right": 0, "down": 1, "left": 2, "up": 3}[mover.motion]
    first, second = (
        np.rot90(mask(thing.kind, SIZES[thing.size]) >= 128, turns) for thing in (mover, other)
    )
    high = max(len(first), len(second))
    free = []
    for covered in (first[:, ::-1], second):
        rows = np.full(high, GRID)
        start = (high - len(covered)) // 2
        some = covered.any(1)
        rows[start : start + len(covered)] = np.where(some, covered.argmax(1), GRID)
        free.append(rows)
    return int((free[0] + free[1]).min()) if (free[0] + free[1]).min() < GRID else 0


def _placed(choices: Choices, groups: list[_Group]) -> list[tuple[Thing, Poses]] | None:
    """Places groups apart from each other; returns None if they find no room."""
    boxes: list[tuple[int, int, int, int]] = []
    actors = []
    for group in sorted(groups, key=lambda each: -each.width * each.height):
        corner = _corner(choices, group, boxes)
        if corner is None:
            return None
        left, top = corner
        boxes.append((left, top, left + group.width, top + group.height))
        for thing, poses in group.actors:
            moved = [pose and pose._replace(x=pose.x + left, y=pose.y + top) for pose in poses]
            actors.append((thing, moved))
    return actors


def _corner(
    choices: Choices, group: _Group, boxes: list[tuple[int, int, int, int]]
) -> tuple[int, int] | None:
    wide, high = GRID - 2 * EDGE - group.width, GRID - 2 * EDGE - group.height
    if wide < 0 or high < 0:
        return None
    for _ in range(8):
        left, top = (EDGE + STEP * choices.below(free // STEP + 1) for free in (wide, high))
        right, bottom = left + group.width, top + group.height
        if all(
            right + GAP <= box[0]
            or box[2] + GAP <= left
            or bottom + GAP <= box[1]
            or box[3] + GAP <= top
            for box in boxes
        ):
            return left, top
    return None
