"""The world: clips by index, long films, and single large digits."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from lwm.errors import UserError
from lwm.world.attributes import BACKGROUNDS, COLOURS, DIGITS, GRID, KINDS, NEEDLE, SPLITS, Split
from lwm.world.choices import Choices
from lwm.world.facts import Facts
from lwm.world.language import QuestionAnswer, caption, questions
from lwm.world.masks import mask
from lwm.world.scene import Pose, Scene, Setting, plan

SMALLEST = 32
"""Pixels along the side of the smallest pictures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Choice of clips."""

    split: Split = "train"
    seed: int = 0
    frames: int = 8
    """Frames of a clip; 1 for pictures."""
    resolution: int = 64
    """Pixels along a side."""
    fps: float = 4.0
    kinds: tuple[str, ...] | None = None
    """Kinds of things; all by default."""
    backgrounds: tuple[str, ...] | None = None
    """Colours of the background; all by default."""
    most: int = 3
    """Things in a clip, at most: up to 3."""

    def __post_init__(self):
        """Checks the values.

        Raises:
            UserError: One is out of range, or a kind is unknown.
        """
        if self.split not in SPLITS:
            raise UserError(f"split is {self.split!r}; give {' or '.join(SPLITS)}")
        for name, known in (("kinds", KINDS), ("backgrounds", tuple(BACKGROUNDS))):
            given = getattr(self, name)
            if given is not None and not (given and set(given) <= set(known)):
                raise UserError(f"{name} is {', '.join(given)!r}; give some of {', '.join(known)}")
        for name, low, high in (
            ("frames", 1, 1024),
            ("most", 1, 3),
            ("resolution", SMALLEST, 4096),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name} is {getattr(self, name)}; give {low} to {high}")
        if not 0 < self.fps <= 1000:
            raise UserError(f"fps is {self.fps}; give a number above 0")


class Clip(NamedTuple):
    """A clip with all that is known of it."""

    pixels: UInt8[np.ndarray, "T R R 3"]
    facts: Facts
    caption: str
    questions: tuple[QuestionAnswer, ...]


class World:
    """Clips of coloured shapes, digits and sprites, each by its index alone.

    A clip depends on the configuration and its index, and on nothing else: not on the machine,
    the versions of Python and NumPy, or the clips before it.
    """

    def __init__(self, config: WorldConfig = WorldConfig()):
        """Takes a configuration."""
        self.config = config
        self._kinds = config.kinds or KINDS
        self._setting = Setting(
            split=config.split,
            kinds=self._kinds,
            backgrounds=config.backgrounds or tuple(BACKGROUNDS),
            most=config.most,
            frames=config.frames,
            fps=config.fps,
        )

    def clip(self, index: int) -> Clip:
        """Returns a clip, its caption and questions."""
        name = self.config.split, self.config.seed, index
        scene = plan(Choices("clip", *name), self._setting)
        asked = questions(
            scene.facts, Choices("questions", *name), split=self.config.split, kinds=self._kinds
        )
        pixels = render(scene, self.config.resolution)
        return Clip(pixels, scene.facts, caption(scene.facts), asked)

    def film(self, frames: int, seed: int) -> Iterator[UInt8[np.ndarray, "R R 3"]]:
        """Yields the frames of a film of scenes, one scene in memory at a time.

        Args:
            frames: Frames of the film; its last scene may be cut.
            seed: Of the film; none of its scenes is a clip of `clip`.
        """
        for start in range(0, frames, self.config.frames):
            name = self.config.split, self.config.seed, seed, start // self.config.frames
            scene = plan(Choices("film", *name), self._setting)
            yield from render(scene, self.config.resolution)[: frames - start]


def render(scene: Scene, resolution: int) -> UInt8[np.ndarray, "T R R 3"]:
    """Returns the frames of a scene."""
    pixels = np.empty((scene.facts.frames, resolution, resolution, 3), np.uint8)
    pixels[:] = BACKGROUNDS[scene.facts.background]
    for thing, poses in scene.actors:
        for frame, pose in zip(pixels, poses, strict=True):
            if pose is not None:
                _paint(frame, thing.kind, thing.colour, pose)
    return pixels


def needle_frame(
    digit: str, colour: str, background: str = "white", resolution: int = 64
) -> UInt8[np.ndarray, "R R 3"]:
    """Returns a picture of one digit that fills most of it; the checker reads it as any other.

    Args:
        digit: "0" to "9".
        colour: A name of `COLOURS`.
        background: A name of `BACKGROUNDS`.
        resolution: Pixels along a side.

    Raises:
        UserError: A name is unknown.
    """
    given = {"digit": digit, "colour": colour, "background": background}
    for (name, value), known in zip(given.items(), (DIGITS, COLOURS, BACKGROUNDS), strict=True):
        if value not in known:
            raise UserError(f"{name} is {value!r}; give one of {', '.join(known)}")
    frame = np.empty((resolution, resolution, 3), np.uint8)
    frame[:] = BACKGROUNDS[background]
    _paint(frame, digit, colour, Pose(GRID // 2, GRID // 2, NEEDLE, False))
    return frame


def _paint(frame: UInt8[np.ndarray, "R R 3"], kind: str, colour: str, pose: Pose) -> None:
    """Blends a thing into a frame."""
    resolution = len(frame)
    side = (2 * pose.side * resolution + GRID) // (2 * GRID)
    left, top = (
        (2 * (2 * at - pose.side) * resolution + 2 * GRID) // (4 * GRID) for at in (pose.x, pose.y)
    )
    part = frame[top : top + side, left : left + side]
    cover = mask(kind, side, pose.turned)[..., None].astype(np.int32)
    mixed = cover * np.array(COLOURS[colour], np.int32) + (255 - cover) * part
    part[:] = (mixed + 127) // 255
