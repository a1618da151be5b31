"""Haystacks of frames: codes of a video file, or of generated clips, that are read as streams."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from lwm.errors import UserError
from lwm.eval.visual_needle.config import VisualNeedleConfig
from lwm.fingerprint import content_of
from lwm.generate.loaded import LoadedModel
from lwm.media.frames import open_frames
from lwm.world.attributes import DIGITS, KINDS
from lwm.world.world import World, WorldConfig

_PROBE = 8
"""Frames whose pixels identify the world."""


@runtime_checkable
class Haystack(Protocol):
    """Frames around a needle; each round has its own."""

    def codes(self, round: int, count: int) -> Int[np.ndarray, "count codes"]:
        """Returns the codes of the first frames of a round."""
        ...

    def facts(self) -> dict[str, Any]:
        """Returns what identifies it, without paths of this machine."""
        ...


def open_haystack(
    config: VisualNeedleConfig, model: LoadedModel, *, between: Callable[[], None] = lambda: None
) -> Haystack:
    """Returns the haystack of a configuration, with the codes of a model.

    Args:
        config: The configuration.
        model: Encodes the frames.
        between: Called between batches of a video file; may raise.

    Raises:
        UserError: The video cannot be read, or has too few frames.
    """
    if config.is_of_world:
        return WorldHaystack(model, seed=config.seed)
    return FilmHaystack(model, config, between=between)


class WorldHaystack:
    """Clips of the world one after another, without digits; each round has a film of its own."""

    def __init__(self, model: LoadedModel, *, seed: int):
        """Encodes nothing yet.

        Args:
            model: Encodes the frames.
            seed: Seed of the clips.
        """
        self.kinds = tuple(kind for kind in KINDS if kind not in DIGITS)
        """Kinds of things in the clips."""
        config = WorldConfig(seed=seed, kinds=self.kinds, resolution=model.vision.resolution)
        self._model, self._world = model, World(config)
        self._known: dict[int, Int[np.ndarray, "frames codes"]] = {}

    def codes(self, round: int, count: int) -> Int[np.ndarray, "count codes"]:
        """Returns the codes of the first frames of a round, which are encoded once."""
        known = self._known.get(round)
        if known is None or len(known) < count:
            film = self._world.film(count, seed=round)
            known = self._known[round] = encoded(self._model, film, count)
        return known[:count]

    def facts(self) -> dict[str, Any]:
        """Returns what identifies the clips: pixels of the first frames."""
        found = hashlib.sha256()
        for pixels in self._world.film(_PROBE, seed=0):
            found.update(pixels.tobytes())
        return {"name": "world", "sha256": found.hexdigest()}


class FilmHaystack:
    """Frames of a video file; round n starts at 0, 1/2, 1/4, 3/4, 1/8, … of it."""

    def __init__(
        self,
        model: LoadedModel,
        config: VisualNeedleConfig,
        *,
        between: Callable[[], None] = lambda: None,
    ):
        """Encodes the frames as they are read.

        Raises:
            UserError: The file cannot be read, or has too few frames.
        """
        self._path, self._fps = Path(config.haystack), config.fps
        self._longest = max(config.frames) - 1
        with open_frames(self._path, resolution=model.vision.resolution, fps=config.fps) as stream:
            self._require_enough(stream.num_selected)
            frames = (frame.pixels for frame in stream)
            self._codes = encoded(model, frames, stream.num_selected, between=between)
        self._require_enough(len(self._codes))  # some packets of a video show no frame

    def _require_enough(self, count: int) -> None:
        if count < self._longest:
            raise UserError(
                f"{self._path} gives {count:,} frames at {self._fps:g} a second, and "
                f"{self._longest + 1:,} with a needle need {self._longest:,}; raise --fps, or "
                "lower --frames"
            )

    def codes(self, round: int, count: int) -> Int[np.ndarray, "count codes"]:
        """Returns the codes of so many frames from the start of a round, after the end from 0."""
        places = (_start(round, len(self._codes)) + np.arange(count)) % len(self._codes)
        return self._codes[places]

    def facts(self) -> dict[str, Any]:
        """Returns the name and the content of the file, and what is taken of it."""
        return {"name": self._path.name, "sha256": content_of(self._path), "fps": self._fps}


def _start(round: int, count: int) -> int:
    """Returns the first frame of a round: van der Corput's sequence times the count."""
    start, size, left = 0.0, 0.5, round
    while left:
        start += size * (left & 1)
        left, size = left >> 1, size / 2
    return int(start * count)


def encoded(
    model: LoadedModel,
    frames: Iterable[UInt8[np.ndarray, "R R 3"]],
    count: int,
    *,
    between: Callable[[], None] = lambda: None,
) -> Int[np.ndarray, "frames codes"]:
    """Returns the codes of frames, of which only a batch is in memory at a time.

    Args:
        model: Encodes the frames.
        frames: The frames.
        count: Their number, at most.
        between: Called after each batch; may raise.
    """
    found = []
    for codes in model.encode_stream(frames, count):
        found.append(codes.astype(np.int32))
        between()
    return np.concatenate(found)
