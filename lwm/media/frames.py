"""Reads any image or video file as square frames for a vision tokenizer."""

import contextlib
import dataclasses
import io
import math
import os
import reprlib
import time
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal

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
    SelectedFrame,
    colour,
    image_module,
)
from lwm.media.memory import WANTED, clip_in_memory, is_in_memory
from lwm.media.video import read_video

FileKind = Literal["image", "animation", "video"]


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
    with open_frames(
        source,
        resolution=resolution,
        max_frames=max_frames,
        fps=fps,
        fit=fit,
        background=background,
        limits=limits,
        threads=threads,
        name=name,
    ) as stream:
        _require_fewer(stream.name, stream.num_selected, resolution, limits)
        frames = list(stream)
        return Frames(
            pixels=np.stack([frame.pixels for frame in frames]),
            times=np.array([frame.time for frame in frames]),
            is_video=stream.is_video,
            duration=stream.duration,
            count=stream.count,
            width=frames[0].size[0],
            height=frames[0].size[1],
        )


def open_frames(
    source: str | Path | bytes | Any,
    *,
    resolution: int,
    max_frames: int | None = None,
    fps: float | None = None,
    fit: Literal["crop", "letterbox"] = "crop",
    background: str | tuple[int, int, int] = "white",
    limits: Limits | None = None,
    threads: int = 0,
    name: str | None = None,
) -> "FrameStream":
    """Opens the frames of `read_frames` as a stream: a film of any length needs little memory.

    The arguments are those of `read_frames`; `returned_bytes` is no limit here. The source may be
    in memory, too: an image of Pillow, an array, or a list of images, see `clip_in_memory`.

    Raises:
        UserError: See `read_frames`; one may come with any frame, too.
    """
    label = name or _label(source)
    check_settings(resolution, max_frames, fps, fit)
    resize = Resizer(resolution=resolution, fit=fit, background=colour(background))
    selector = FrameSelector(max_frames=max_frames, fps=fps)
    if not isinstance(source, str | Path | bytes):
        if not is_in_memory(source):
            raise UserError(f"{reprlib.repr(source)} is no image and no video: {WANTED}")
        limits = limits or Limits()
        budget = Budget(label, limits.image_bytes, limits)
        clip, is_video = clip_in_memory(source, selector, resize, budget)
        return FrameStream(io.BytesIO(), clip, budget, kind="video" if is_video else "image")
    with contextlib.ExitStack() as stack, reading(label):
        file = stack.enter_context(_opened(source, label))
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise UserError(f"{label} is empty")
        file.seek(0)
        budget = Budget(label, size, limits or Limits())
        clip, kind = _clip(file, selector, resize, budget, threads)
        stack.pop_all()  # the stream closes it
    return FrameStream(file, clip, budget, kind=kind)


class FrameStream:
    """Selected frames of a file in order, each decoded when it is taken.

    A context manager, at whose end the file is closed. The frames can be taken once.
    """

    def __init__(self, file: BufferedIOBase, clip: Clip, budget: Budget, *, kind: FileKind):
        """Takes a file that is open; see `open_frames`."""
        self._file, self._clip, self._budget = file, clip, budget
        self.name = budget.name
        """The name of the file in messages."""
        self.kind: FileKind = kind
        """An animated image is `animation`, which is read as a video."""
        self.num_selected = clip.num_selected
        """Frames to come at most, known before the first: some packets of a video show none."""
        self.count = clip.count
        """Frames in the file."""

    @property
    def is_video(self) -> bool:
        """False for a still image."""
        return self.kind != "image"

    @property
    def duration(self) -> float:
        """Seconds of the whole file; 0 for an image, and for an animation before its end."""
        return self._clip.duration

    def __iter__(self) -> Iterator[SelectedFrame]:
        """Yields the frames.

        Raises:
            UserError: The file is damaged there, or exceeds the limits.
        """
        paused = time.monotonic()
        while True:
            self._budget.wait(time.monotonic() - paused)
            with reading(self.name):
                frame = next(self._clip.frames, None)
            paused = time.monotonic()
            if frame is None:
                return
            yield frame

    def __enter__(self) -> "FrameStream":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file."""
        self._clip.close()
        self._file.close()


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
    numbers = FrameSelector(max_frames=max_frames, fps=fps)(frames.times, frames.duration)
    _require_fewer(name, len(numbers), resolution, limits)
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


def _require_fewer(name: str, count: int, resolution: int, limits: Limits | None) -> None:
    """Refuses frames that take more memory than `returned_bytes`."""
    most = (limits or Limits()).returned_bytes // (3 * resolution**2)
    if count > most:
        raise UserError(
            f"{name} would give {count} frames, more than the {most} that returned_bytes in "
            "Limits allows; give max_frames or fps"
        )


def _label(source: Any) -> str:
    """Returns the name of a source in messages."""
    if isinstance(source, bytes):
        return "the given bytes"
    return str(source) if isinstance(source, str | Path) else "the given picture"


def _opened(source: str | Path | bytes, label: str) -> BufferedIOBase:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    path = Path(source)
    if path.exists() and not path.is_file():
        raise UserError(f"{label} is not a file")  # reading a pipe would block
    return path.open("rb")


def _clip(
    file: BufferedIOBase, selector: FrameSelector, resize: Resizer, budget: Budget, threads: int
) -> tuple[Clip, FileKind]:
    """Returns the selected frames of a file, and its kind."""
    image = open_image(file, budget)
    if image is None:
        _refuse_heic(file, budget.name)
        return read_video(file, selector, resize, budget, threads), "video"
    if is_animated(image):
        return read_animation(image, selector, resize, budget), "animation"
    return read_still(image, resize, budget), "image"


def _refuse_heic(file: BufferedIOBase, name: str) -> None:
    """Refuses HEIC, of which FFmpeg would read the first of many tiles.

    Raises:
        UserError: The file is HEIC.
    """
    file.seek(4)
    kind = file.read(8)
    if kind[:4] == b"ftyp" and kind[4:] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"):
        raise UserError(f"{name} is HEIC, which is not read; convert it to JPEG or PNG")
