"""Frames for a vision tokenizer, out of any image or video, however it is named or damaged."""

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
from lwm.media.images import Animation, is_animated, open_image, read_still
from lwm.media.limits import Choice, Clip, Fit, Limits, Work, colour
from lwm.media.video import read_video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames:
    """Square frames and when each is shown."""

    pixels: UInt8[np.ndarray, "N R R 3"]
    times: Float[np.ndarray, " N"]
    """Seconds from the first frame of the file, as its timestamps say; strictly increasing."""
    is_video: bool
    """False of a still image, which is one frame at 0 s."""
    duration: float
    """Seconds for which the file lasts, whatever was read of it; 0 of an image."""
    count: int
    """Frames in the file."""
    width: int
    """Pixels of the original, as shown: upright, and square pixels."""
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
    """Reads an image, or frames of a video; which of them it is, the content says.

    By default each picture is treated as LWM does: its shorter side is brought to `resolution` by
    an antialiased bicubic filter, and its middle is kept. Colour profiles are not applied, and
    fields are not woven.

    Args:
        source: A file, or its content.
        resolution: Pixels along a side.
        max_frames: At most so many, uniformly over the file as in LWM: the first and the last too.
        fps: Those shown at each 1/fps seconds, none twice; `max_frames` then thins these out.
        fit: `letterbox` keeps the whole picture, on the background.
        background: Stands where a picture is transparent or does not reach.
        limits: What a file may ask for; by default no more than honest ones do.
        threads: For decoding one video; 0 is one for each core. Give 1 where many are read at once.
        name: What messages call the content; by default the path.

    Raises:
        UserError: The file is missing, damaged, none of these, or asks for too much; one line
            names it and the reason.
    """
    label = name or ("the given bytes" if isinstance(source, bytes) else str(source))
    limits = limits or Limits()
    _require(resolution, max_frames, fps, fit)
    fitting = Fit(resolution=resolution, way=fit, background=colour(background))
    most = limits.returned_bytes // (3 * resolution**2)
    choice = Choice(name=label, max_frames=max_frames, fps=fps, most=most)
    with reading(label), _opened(source, label) as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise UserError(f"{label} is empty")
        file.seek(0)
        return _read(file, choice, fitting, Work(label, size, limits), threads)


def _require(resolution: int, max_frames: int | None, fps: float | None, fit: str) -> None:
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
        raise UserError(f"{label} is no file")  # a pipe would be waited for
    return path.open("rb")


def _read(file: BufferedIOBase, choice: Choice, fit: Fit, work: Work, threads: int) -> Frames:
    image = open_image(file, work)
    if image is None:
        _refuse_heic(file, work.name)
        return _frames(read_video(file, choice, fit, work, threads), is_video=True)
    if is_animated(image):
        return _frames(Animation(image, work).read(choice, fit), is_video=True)
    upright = read_still(image, fit.background, work)
    still = Clip(times=[0.0], pixels=[fit(upright)], count=1, duration=0.0, size=upright.size)
    return _frames(still, is_video=False)


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
    """Refuses what FFmpeg would read as the first of many tiles.

    Raises:
        UserError: It is HEIC.
    """
    file.seek(4)
    kind = file.read(8)
    if kind[:4] == b"ftyp" and kind[4:] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"):
        raise UserError(f"{name} is HEIC, which is not read; convert it to JPEG or PNG")
