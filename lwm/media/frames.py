"""Reads any image or video file as square frames for a vision tokenizer."""

import dataclasses
import io
import math
import os
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from lwm.errors import UserError
from lwm.files import reading
from lwm.media.images import is_animated, open_image, read_animation, read_still
from lwm.media.limits import (
    Budget,
    Clip,
    FrameSelector,
    Limits,
    Resizer,
    colour,
    image_module,
)
from lwm.media.video import read_video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames:
    """Square frames and their times."""

    pixels: UInt8[np.ndarray, "N R R 3"]
    times: Float[np.ndarray, " N"]
    """Seconds from the first frame of the file, by its timestamps; strictly increasing."""
    is_video: bool
    """False for a still image, which is one frame at 0 s."""
    duration: float
    """Seconds of the whole file; 0 for an image."""
    count: int
    """Frames in the file."""
    width: int
    """Pixels of the original as displayed: upright, with square pixels."""
    height: int


def read_frames(
    source: str | Path | bytes,
    *,
    resolution: int,
    max_frames: int | None = None,
    fps: float | None = None,
    fit: Literal["crop", "letterbox"] = "crop",
    background: str | tuple[int, int, int] = "white",
    limits: Limits | None = None,
    threads: int = 0,
    name: str | None = None,
) -> Frames:
    """Reads an image, or frames of a video; the content decides the type, not the name.

    By default each picture is processed as in LWM: its shorter side is resized to `resolution` with
    an antialiased bicubic filter, and the centre is cropped. Colour profiles are not applied, and
    interlaced video is not deinterlaced.

    Args:
        source: A path, or the content of a file.
        resolution: Pixels along a side.
        max_frames: Frames at most, uniformly spaced from the first to the last, as in LWM.
        fps: Takes the frames displayed at each 1/fps seconds; `max_frames` then thins these out.
        fit: `crop` cuts off what exceeds the square; `letterbox` pads with the background.
        background: The colour of transparent pixels and of the padding.
        limits: Limits on the file; the defaults suit any normal file.
        threads: For decoding one video; 0 is one per core. Give 1 to read many files in parallel.
        name: The name of the content in messages; by default the path.

    Raises:
        UserError: The file is missing or damaged, is no image or video, or exceeds the limits;
            one line names the file and the reason.
    """
    label = name or ("the given bytes" if isinstance(source, bytes) else str(source))
    limits = limits or Limits()
    check_settings(resolution, max_frames, fps, fit)
    resize = Resizer(resolution=resolution, fit=fit, background=colour(background))
    most = limits.returned_bytes // (3 * resolution**2)
    selector = FrameSelector(name=label, max_frames=max_frames, fps=fps, most=most)
    with reading(label), _opened(source, label) as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise UserError(f"{label} is empty")
        file.seek(0)
        return _read(file, selector, resize, Budget(label, size, limits), threads)


def choose_frames(
    frames: Frames,
    *,
    resolution: int,
    max_frames: int | None = None,
    fps: float | None = None,
    fit: Literal["crop", "letterbox"] = "crop",
    background: str | tuple[int, int, int] = "white",
    limits: Limits | None = None,
    name: str = "the given frames",
) -> Frames:
    """Chooses and resizes frames that are in memory, as `read_frames` does those of a file.

    Args:
        frames: All frames; the other arguments are those of `read_frames`.

    Raises:
        UserError: A setting is out of range, or the frames would exceed the limits.
    """
    check_settings(resolution, max_frames, fps, fit)
    most = (limits or Limits()).returned_bytes // (3 * resolution**2)
    selector = FrameSelector(name=name, max_frames=max_frames, fps=fps, most=most)
    numbers = selector(frames.times, frames.duration)
    pixels = frames.pixels[numbers]
    if pixels.shape[1] != resolution:  # both ways of fitting are the same for a square
        resize = Resizer(resolution=resolution, fit=fit, background=colour(background))
        pixels = np.stack([resize(image_module().fromarray(each)) for each in pixels])
    return dataclasses.replace(frames, pixels=pixels, times=frames.times[numbers])


def check_settings(resolution: int, max_frames: int | None, fps: float | None, fit: str) -> None:
    """Checks arguments of `read_frames`.

    Raises:
        UserError: One is out of range.
    """
    if not 1 <= resolution <= 1 << 14:
        raise UserError(f"resolution is {resolution}; give 1 to {1 << 14} pixels")
    if max_frames is not None and max_frames < 1:
        raise UserError(f"max_frames is {max_frames}; give at least 1")
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UserError(f"fps is {fps}; give a number above 0")
    if fit not in ("crop", "letterbox"):
        raise UserError(f"fit is {fit!r}; give crop or letterbox")


def _opened(source: str | Path | bytes, label: str) -> BufferedIOBase:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    path = Path(source)
    if path.exists() and not path.is_file():
        raise UserError(f"{label} is not a file")  # reading a pipe would block
    return path.open("rb")


def _read(
    file: BufferedIOBase, selector: FrameSelector, resize: Resizer, budget: Budget, threads: int
) -> Frames:
    image = open_image(file, budget)
    if image is None:
        _refuse_heic(file, budget.name)
        return _frames(read_video(file, selector, resize, budget, threads), is_video=True)
    if is_animated(image):
        return _frames(read_animation(image, selector, resize, budget), is_video=True)
    return _frames(read_still(image, resize, budget), is_video=False)


def _frames(clip: Clip, *, is_video: bool) -> Frames:
    return Frames(
        pixels=np.stack(clip.pixels),
        times=np.array(clip.times),
        is_video=is_video,
        duration=clip.duration,
        count=clip.count,
        width=clip.size[0],
        height=clip.size[1],
    )


def _refuse_heic(file: BufferedIOBase, name: str) -> None:
    """Refuses HEIC, of which FFmpeg would read the first of many tiles.

    Raises:
        UserError: The file is HEIC.
    """
    file.seek(4)
    kind = file.read(8)
    if kind[:4] == b"ftyp" and kind[4:] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"):
        raise UserError(f"{name} is HEIC, which is not read; convert it to JPEG or PNG")
