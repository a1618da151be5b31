"""Facts of a clip of the world: its things, their attributes, and the background."""

import dataclasses
from typing import Any

from lwm.world.attributes import COLOURS, KINDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    """A thing and what it does in a clip."""

    kind: str
    colour: str
    size: str
    """Its size when it is first seen."""
    motion: str
    event: str | None = None
    frame: int | None = None
    """First frame in which the event is seen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of a clip; a picture is a clip of one frame."""

    things: tuple[Thing, ...]
    """In the order of their colours and kinds."""
    background: str
    frames: int
    fps: float

    def __post_init__(self):
        """Puts the things in order."""
        object.__setattr__(self, "things", tuple(sorted(self.things, key=_rank)))

    def to_json(self) -> dict[str, Any]:
        """Returns values that JSON can hold."""
        return dataclasses.asdict(self) | {
            "things": [dataclasses.asdict(thing) for thing in self.things]
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Facts":
        """Reads what `to_json` returned."""
        return cls(**values | {"things": tuple(Thing(**each) for each in values["things"])})

    def second(self, thing: Thing) -> int | None:
        """Returns in which second of the clip a thing's event happens, from 0."""
        return None if thing.frame is None else int(thing.frame / self.fps)

    @property
    def seconds(self) -> int:
        """Seconds of the clip, the last one perhaps not whole."""
        return -int(-self.frames // self.fps)


def _rank(thing: Thing) -> tuple[int, int]:
    return list(COLOURS).index(thing.colour), KINDS.index(thing.kind)
