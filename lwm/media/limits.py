"""What every reader of pictures needs: what a file may cost, which frames, and how they fit."""

import dataclasses
import math
import time
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from lwm.errors import UserError
from lwm.files import require_package

_JITTER = 1e-3
"""Seconds by which a time may be off: Matroska and Flash round theirs to milliseconds."""
_WHOLE = 4
"""Times as long as high may a picture be that is resized just as LWM did, then cut."""
_OVERHEAD = 1 << 12
"""Pixels whose decoding takes as long as a packet or a read takes however small it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may ask for; one that asks for more is refused, most often before it is decoded.

    Work is counted, not timed, so that the same files are read on every machine.
    """

    pixels: int = 1 << 26
    """Of a still image. Pillow has a limit of its own, `PIL.Image.MAX_IMAGE_PIXELS`."""
    frame_pixels: int = 9 << 22
    """Of a frame of a video: 8192 × 4608."""
    image_bytes: int = 1 << 29
    """Of an image's file, which is read whole; videos may be of any size."""
    returned_bytes: int = 1 << 30
    """Of the frames that are returned: at 256 × 256 some five thousand."""
    work: int = 1 << 29
    """Pixels to decode, and for each byte of the file `work_per_byte` more."""
    work_per_byte: int = 1 << 15
    seconds: float | None = None
    """Wall time, for who reads the files of strangers; looked at between frames."""


class Work:
    """Counts what a file costs and refuses it once that is too much."""

    def __init__(self, name: str, size: int, limits: Limits) -> None:
        """Starts the count.

        Args:
            name: What the file is called in messages.
            size: Its bytes.
            limits: What it may cost.
        """
        self.name = name
        self.size = size
        self.limits = limits
        self._left = limits.work + limits.work_per_byte * size
        self._end = math.inf if limits.seconds is None else time.monotonic() + limits.seconds

    def charge(self, pixels: int = 0, times: int = 1) -> None:
        """Counts pictures of so many pixels each.

        Raises:
            UserError: The file is one too many of them for its size, or has used up its time.
        """
        self._left -= times * (pixels + _OVERHEAD)
        if self._left < 0:
            raise UserError(
                f"{self.name} asks for more decoding than a file of its size should; if it is "
                "meant to, raise work in Limits"
            )
        if time.monotonic() > self._end:
            seconds = f"{self.limits.seconds:g} s"
            raise UserError(f"{self.name} was not read within {seconds}; raise seconds in Limits")

    def check(self, width: int, height: int, *, still: bool) -> None:
        """Refuses a picture that is too large to be decoded.

        Raises:
            UserError: It has no pixels, or too many.
        """
        field = "pixels" if still else "frame_pixels"
        if width < 1 or height < 1:
            raise UserError(f"{self.name} claims a picture of {width} × {height} pixels")
        if width * height > getattr(self.limits, field):
            raise UserError(
                f"{self.name} claims {width} × {height} pixels, more than {field} in Limits allows"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """The frames of a file that were wanted."""

    times: list[float]
    pixels: list[UInt8[np.ndarray, "R R 3"]]
    count: int
    duration: float
    size: tuple[int, int]
    """Width and height of the first one, as shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Which frames of a video are wanted."""

    name: str
    max_frames: int | None
    fps: float | None
    most: int

    def __call__(self, times: Float[np.ndarray, " N"], duration: float) -> list[int]:
        """Returns the numbers of the frames that are wanted, none twice.

        With `fps` these are the frames shown at 0, 1/fps, 2/fps... seconds.
        """
        if self.fps is None:
            return self.spread(len(times))
        # A frame is shown at some k/fps if the first k/fps from its start on is before its end.
        ends = np.append(times[1:], duration)
        shown = np.ceil((times - _JITTER) * self.fps) < (ends - _JITTER) * self.fps
        shown[0] = True
        found = np.flatnonzero(shown)
        return [int(found[i]) for i in self.spread(len(found))]

    def spread(self, count: int) -> list[int]:
        """Returns at most `max_frames` of so many numbers, the first and the last among them.

        They are those of LWM: `np.linspace`, rounded down.

        Raises:
            UserError: There are more than should be held in memory.
        """
        wanted = count if self.max_frames is None else min(count, self.max_frames)
        if wanted > self.most:
            raise UserError(
                f"{self.name} would give {wanted} frames, more than the {self.most} that "
                "returned_bytes in Limits allows; give max_frames or fps"
            )
        if wanted == count:
            return list(range(count))
        return np.linspace(0, count - 1, wanted, dtype=int).tolist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """How a picture of any size becomes a square.

    Pictures are resized by Pillow's antialiased bicubic filter: LWM's frames were, and a tokenizer
    of frames should see what it was trained on.
    """

    resolution: int
    way: Literal["crop", "letterbox"]
    background: tuple[int, int, int]

    def __call__(self, image: Any, aspect: float = 1.0) -> UInt8[np.ndarray, "R R 3"]:
        """Resizes an RGB image of Pillow's whose pixels are `aspect` times as wide as high."""
        resize = self._cover if self.way == "crop" else self._contain
        return np.asarray(resize(image, image.width * aspect, float(image.height)))

    def _cover(self, image: Any, width: float, height: float) -> Any:
        side = self.resolution
        if width < height:
            wide, high = side, int(side * height / width)
        else:
            wide, high = int(side * width / height), side
        left, top = round((wide - side) / 2), round((high - side) / 2)
        if wide * high <= _WHOLE * side * side:
            image = image.resize((wide, high), _bicubic())
            return image.crop((left, top, left + side, top + side))
        # A strip of one by a million pixels is not blown up whole, but only what is kept of it.
        across, down = image.width / wide, image.height / high
        box = (
            left * across,
            top * down,
            min((left + side) * across, image.width),
            min((top + side) * down, image.height),
        )
        return image.resize((side, side), _bicubic(), box=box)

    def _contain(self, image: Any, width: float, height: float) -> Any:
        side = self.resolution
        scale = side / max(width, height)
        wide, high = max(1, round(width * scale)), max(1, round(height * scale))
        square = image_module().new("RGB", (side, side), self.background)
        small = image.resize((wide, high), _bicubic())
        square.paste(small, ((side - wide) // 2, (side - high) // 2))
        return square


def flatten(image: Any, background: tuple[int, int, int]) -> Any:
    """Returns an image as RGB, over a background where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    under = image_module().new("RGB", image.size, background)
    under.paste(image, mask=image)
    return under


def image_module() -> Any:
    """Imports Pillow."""
    return require_package("PIL.Image", "reading and writing images", "media")


def colour(value: str | tuple[int, ...]) -> tuple[int, int, int]:
    """Reads a colour: a name or code as in CSS, or red, green and blue up to 255.

    Raises:
        UserError: It is none.
    """
    if isinstance(value, str):
        try:
            value = require_package("PIL.ImageColor", "a colour's name", "media").getrgb(value)[:3]
        except ValueError:
            raise UserError(f"{value!r} is no colour; give one such as white or #ffffff") from None
    if len(value) != 3 or not all(isinstance(v, int) and 0 <= v < 256 for v in value):
        raise UserError(f"{value} is no colour; give red, green and blue from 0 to 255")
    return value[0], value[1], value[2]


def _bicubic() -> Any:
    return image_module().Resampling.BICUBIC
