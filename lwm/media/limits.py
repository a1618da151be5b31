"""Shared by all readers of media: limits on a file, choice of frames, resizing to a square."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from lwm.errors import UserError
from lwm.files import require_package

_JITTER = 1e-3
"""Seconds of tolerance for a time stamp: Matroska and Flash round to milliseconds."""
_WHOLE = 4
"""Aspect ratio up to which a picture is resized whole and then cropped, as in LWM."""
_OVERHEAD = 1 << 12
"""Fixed cost of a packet or a read, in pixels whose decoding takes as long."""
SMALLER = (
    "make it smaller, or save it as a JPEG that is not progressive: these are read at any size"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on a file; one that exceeds them is refused, usually before it is decoded.

    Work is counted, not timed, so that the same files are read on every machine.
    """

    pixels: int = 1 << 26
    """Pixels of a still image, as decoded: a larger JPEG is decoded at a half, a quarter or an
    eighth of its size. Other formats have another limit in Pillow, `PIL.Image.MAX_IMAGE_PIXELS`."""
    frame_pixels: int = 9 << 22
    """Pixels of a frame of a video: 8192 × 4608."""
    image_bytes: int = 1 << 29
    """Bytes of an image file, which is read whole; videos may be of any size."""
    returned_bytes: int = 1 << 30
    """Bytes of frames that are returned at once: about five thousand at 256 × 256."""
    work: int = 1 << 29
    """Pixels to decode, besides `work_per_byte` for each byte of the file."""
    work_per_byte: int = 1 << 15
    seconds: float | None = None
    """Time of reading, for servers that read untrusted files; checked between frames."""


class Budget:
    """Counts the cost of decoding a file, and refuses it once its limit is exceeded."""

    def __init__(self, name: str, size: int, limits: Limits) -> None:
        """Starts the count for a file of `size` bytes; its name is for messages."""
        self.name = name
        self.size = size
        self.limits = limits
        self._left = limits.work + limits.work_per_byte * size
        self._end = math.inf if limits.seconds is None else time.monotonic() + limits.seconds

    def charge(self, pixels: int = 0, times: int = 1) -> None:
        """Counts the decoding of `times` pictures of `pixels` pixels each.

        Raises:
            UserError: The file needs too much work for its size, or too much time.
        """
        self._left -= times * (pixels + _OVERHEAD)
        if self._left < 0:
            raise UserError(
                f"{self.name} asks for more decoding than a file of its size should; if it is "
                "meant to, raise work in Limits"
            )
        self.require_time()

    def require_time(self) -> None:
        """Checks the time.

        Raises:
            UserError: There is none left.
        """
        if time.monotonic() > self._end:
            seconds = f"{self.limits.seconds:g} s"
            raise UserError(f"{self.name} was not read within {seconds}; raise seconds in Limits")

    def wait(self, seconds: float) -> None:
        """Leaves out time in which nothing was read."""
        self._end += seconds

    def check(self, width: int, height: int, *, still: bool) -> None:
        """Checks the size of a picture before it is decoded.

        Raises:
            UserError: It has no pixels, or too many.
        """
        field = "pixels" if still else "frame_pixels"
        if width < 1 or height < 1:
            raise UserError(f"{self.name} claims a picture of {width} × {height} pixels")
        if width * height > getattr(self.limits, field):
            remedy = SMALLER if still else "make it smaller"
            raise UserError(
                f"{self.name} claims {width} × {height} pixels, more than {field} in Limits "
                f"allows; {remedy}"
            )


class SelectedFrame(NamedTuple):
    """A selected frame of a file."""

    time: float
    """Seconds from the first frame of the file; NaN if the frames have no times."""
    pixels: UInt8[np.ndarray, "R R 3"]
    size: tuple[int, int]
    """Width and height of the original as displayed: upright, with square pixels."""


@dataclasses.dataclass(kw_only=True)
class Clip:
    """The selected frames of a file, each decoded when it is taken."""

    frames: Iterator[SelectedFrame]
    num_selected: int
    """Frames at most: some packets of a video show none."""
    count: int
    """Frames in the file."""
    duration: float
    """Seconds of the file; of an animation known after its last frame."""
    close: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSelector:
    """Selects frames of a video by number and rate."""

    max_frames: int | None
    fps: float | None

    def __call__(self, times: Float[np.ndarray, " N"], duration: float) -> list[int]:
        """Returns the numbers of the selected frames, in order and without duplicates.

        With `fps` these are the frames displayed at 0, 1/fps, 2/fps... seconds.
        """
        if self.fps is None:
            return self.spread(len(times))
        # A frame is displayed at some k/fps if the first k/fps after its start is before its end.
        ends = np.append(times[1:], duration)
        shown = np.ceil((times - _JITTER) * self.fps) < (ends - _JITTER) * self.fps
        shown[0] = True
        found = np.flatnonzero(shown)
        return [int(found[i]) for i in self.spread(len(found))]

    def spread(self, count: int) -> list[int]:
        """Returns at most `max_frames` of `count` numbers, with the first and the last.

        As in LWM: `np.linspace`, rounded down.
        """
        selected = count if self.max_frames is None else min(count, self.max_frames)
        if selected == count:
            return list(range(count))
        return np.linspace(0, count - 1, selected, dtype=int).tolist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resizer:
    """Resizes a picture of any size to a square.

    Pillow's antialiased bicubic filter is used, as for the frames that LWM was trained on.
    """

    resolution: int
    fit: Literal["crop", "letterbox"]
    background: tuple[int, int, int]

    def __call__(self, image: Any, aspect: float = 1.0) -> UInt8[np.ndarray, "R R 3"]:
        """Resizes an RGB image of Pillow; `aspect` is the width of a pixel over its height."""
        resize = self._cover if self.fit == "crop" else self._contain
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
        # Of a strip of one by a million pixels only the part that is kept is enlarged.
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
    """Returns an image as RGB; transparent pixels are blended with the background."""
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
    """Reads a colour: a name or code as in CSS, or red, green and blue from 0 to 255.

    Raises:
        UserError: The value is not a colour.
    """
    if isinstance(value, str):
        try:
            value = require_package("PIL.ImageColor", "a colour's name", "media").getrgb(value)[:3]
        except ValueError:
            raise UserError(f"{value!r} is not a colour; give one like white or #ffffff") from None
    if len(value) != 3 or not all(isinstance(v, int) and 0 <= v < 256 for v in value):
        raise UserError(f"{value} is not a colour; give red, green and blue from 0 to 255")
    return value[0], value[1], value[2]


def _bicubic() -> Any:
    return image_module().Resampling.BICUBIC
