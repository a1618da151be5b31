"""The procedural world as items: `world:train,count=2000` names a set of clips with their texts."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from lwm.data.generated import read_name
from lwm.data.media.items import Item, Medium, Survey
from lwm.errors import UserError
from lwm.files import within
from lwm.media.frames import Frames
from lwm.vqgan.checkpoint import SHIPPED
from lwm.world.attributes import SPLITS
from lwm.world.world import SMALLEST, Clip, World, WorldConfig

WORLD = "world:"
Texts = Literal["captions", "questions", "mixed"]
_PROBES = 4
"""Clips whose content stands for that of a set."""


def is_world(name: str) -> bool:
    """Returns whether the name of an input is that of a set of the world."""
    return name.startswith(WORLD)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldSet:
    """A set of clips of the world, as its name says."""

    world: WorldConfig
    count: int = 1000
    text: Texts = "captions"
    """Texts of the clips: captions, questions, or both by turns."""
    resolution: int | None = None
    """Pixels along a side at which the clips are rendered; by default those that are asked for."""
    vqgan: str = SHIPPED.name
    """The VQGAN of the codes, where the set is read as records."""

    @classmethod
    def parse(cls, name: str) -> "WorldSet":
        """Reads a name: `world:train` or `world:heldout`, then options such as `,count=2000`.

        Raises:
            UserError: There is no such split or option, or a value is out of range.
        """
        split, values = read_name(name, WORLD, SPLITS, _OPTIONS)
        if (text := values.get("text", "captions")) not in get_args(Texts):
            raise UserError(f"{name}: text {text!r} is none of {', '.join(get_args(Texts))}")
        own = {key: values.pop(key) for key in _OWN if key in values}
        if (resolution := own.get("resolution")) is not None:
            values["resolution"] = resolution
        try:
            return cls(world=WorldConfig(split=split, **values), **own)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    def __post_init__(self):
        """Refuses a set without clips.

        Raises:
            UserError: The count is 0 or less.
        """
        if self.count < 1:
            raise UserError(f"count {self.count} must be at least 1")


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "count": int,
    "frames": int,
    "fps": float,
    "seed": int,
    "most": int,
    "backgrounds": lambda names: tuple(names.split("+")),
    "text": str,
    "resolution": int,
    "vqgan": str,
}
_OWN = ("count", "text", "resolution", "vqgan")
"""Options that do not belong to the world itself."""


class Drawn(NamedTuple):
    """A clip of the world that can be rendered again at another resolution."""

    clip: Clip
    index: int
    world: WorldSet

    def frames(self, resolution: int) -> Frames:
        """Returns all frames, at this resolution if the set has none of its own."""
        pixels, config = self.clip.pixels, self.world.world
        resolution = max(resolution, SMALLEST)
        if self.world.resolution is None and resolution != config.resolution:
            config = dataclasses.replace(config, resolution=resolution)
            pixels = World(config).clip(self.index).pixels
        return Frames(
            pixels=pixels,
            times=np.arange(len(pixels)) / config.fps,
            is_video=len(pixels) > 1,
            duration=len(pixels) / config.fps if len(pixels) > 1 else 0.0,
            count=len(pixels),
            width=config.resolution,
            height=config.resolution,
        )


class WorldItems:
    """Clips of the world, by number."""

    def __init__(self, world: WorldSet, prefix: str = "") -> None:
        """Takes a set; `prefix` begins the names of its clips."""
        self.set, self._prefix = world, prefix

    def __len__(self) -> int:
        return self.set.count

    def __getitem__(self, index: int) -> Item:
        index = within(index, len(self))
        clip = self.clip(index)
        name = f"{self._prefix}{self.set.world.split}-{index:07}"
        record = {"name": name, **self._texts(clip, index)}
        return Item(name, record, [(record, Medium(name, Drawn(clip, index, self.set)))])

    def clip(self, index: int) -> Clip:
        """Returns a clip with all of its texts."""
        return self._world.clip(index)

    def identity(self) -> list:
        """Returns the settings, and a digest of the first clips as this version renders them."""
        digest = hashlib.sha256()
        for index in range(min(_PROBES, len(self))):
            clip = self.clip(index)
            digest.update(np.ascontiguousarray(clip.pixels).tobytes())
            digest.update(json.dumps([clip.caption, clip.questions]).encode())
        settings = dataclasses.asdict(dataclasses.replace(self.set, vqgan=""))
        return [[WORLD, settings, digest.hexdigest()]]

    def survey(self) -> Survey:
        """Returns that each clip has a text."""
        return Survey(len(self), len(self), [], [])

    def _texts(self, clip: Clip, index: int) -> dict[str, str]:
        text = self.set.text
        if text == "captions" or (text == "mixed" and index % 2 == 0):
            return {"caption": clip.caption}
        # One of the clip's questions, the same on every machine.
        chosen = hashlib.sha256(f"question {self.set.world.seed} {index}".encode()).digest()
        asked = clip.questions[int.from_bytes(chosen[:8]) % len(clip.questions)]
        return {"question": asked.question, "answer": asked.answer}

    @functools.cached_property
    def _world(self) -> World:
        return World(self.set.world)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_world"}
