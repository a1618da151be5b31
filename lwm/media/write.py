"""Writes frames as video files, image files and contact sheets."""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lwm.errors import UserError
from lwm.files import reading, replacing, require_package
from lwm.media.animation import join_gifs, join_webps
from lwm.media.limits import colour, image_module
from lwm.media.text import image_options

IMAGES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
VIDEOS = (".mp4", ".gif", ".webp")
_QUALITY = 95
_CRF = "18"
"""Constant rate factor of x264; visually close to lossless."""
_LEAST_GIF = 100 / (1 << 16)
"""Frames per second of a GIF, at least: it has two bytes for hundredths of a second."""


def write_video(
    path: str | Path,
    pixels: UInt8[np.ndarray, "N R C 3"],
    fps: float,
    *,
    text: str | None = None,
) -> None:
    """Writes frames as .mp4 (H.264, which every browser plays), .gif or .webp.

    The file appears once it is complete. MP4 needs even sides: odd ones are padded by a pixel.
    A GIF plays at most 50 frames per second. A text in the file changes no pixel;
    `lwm.media.text.read_text` returns it.

    Raises:
        UserError: There is no frame, the suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    if not len(pixels):
        raise UserError(f"there is no frame to write to {path}")
    if not 0.001 <= fps <= 1000:
        raise UserError(f"fps is {fps}; give 0.001 to 1000")
    if path.suffix.lower() not in VIDEOS:
        raise UserError(f"{path} ends in none of {', '.join(VIDEOS)}")
    if path.suffix.lower() == ".gif" and fps < _LEAST_GIF:
        raise UserError(
            f"{path} shows a frame for at most 655 s, at fps {fps} it would be longer; write .webp"
        )
    write = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp}[path.suffix.lower()]
    with reading(path, "written"), replacing(path) as part:
        write(part, pixels, fps, text)


def write_image(
    path: str | Path, pixels: UInt8[np.ndarray, "R C 3"], *, text: str | None = None
) -> None:
    """Writes a frame as .png, .jpg or .webp. The file appears once it is complete.

    A text in the file changes no pixel; `lwm.media.text.read_text` returns it. A JPEG has room for
    65,000 bytes of it, and none of a longer one.

    Raises:
        UserError: The suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    kind = IMAGES.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path} ends in none of {', '.join(IMAGES)}")
    image = image_module().fromarray(pixels)
    options = {} if text is None else image_options(kind, text)
    with reading(path, "written"), replacing(path) as part:
        image.save(part, kind, quality=_QUALITY, **options)


def contact_sheet(
    frames: Sequence[UInt8[np.ndarray, "R C 3"]] | UInt8[np.ndarray, "N R C 3"],
    columns: int,
    *,
    gap: int = 2,
    background: str | tuple[int, int, int] = "white",
) -> UInt8[np.ndarray, "H W 3"]:
    """Lays frames out in rows, as one image.

    Raises:
        UserError: There is no frame or no column, or the frames differ in size.
    """
    if not len(frames) or columns < 1 or gap < 0:
        raise UserError("a contact sheet needs a frame, a column and a gap of at least 0 pixels")
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise UserError("the frames of a contact sheet differ in size; read them at one resolution")
    high, wide, _ = sizes.pop()
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    shape = (rows * (high + gap) - gap, columns * (wide + gap) - gap, 3)
    sheet = np.empty(shape, np.uint8)
    sheet[:] = colour(background)
    for number, frame in enumerate(frames):
        top, left = (number // columns) * (high + gap), (number % columns) * (wide + gap)
        sheet[top : top + high, left : left + wide] = frame
    return sheet


def _write_mp4(part: Path, pixels: np.ndarray, fps: float, text: str | None) -> None:
    av = require_package("av", "writing MP4", "media")
    high, wide = pixels.shape[1:3]
    padding = ((0, high % 2), (0, wide % 2), (0, 0))
    options = {"movflags": "faststart"}
    with av.open(f"file:{part}", "w", format="mp4", options=options) as container:
        if text is not None:
            container.metadata["comment"] = text
        rate = Fraction(fps).limit_denominator(100_000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": _CRF})
        stream.height, stream.width = high + high % 2, wide + wide % 2
        stream.pix_fmt = "yuv420p"
        for frame in pixels:
            even = np.pad(frame, padding, mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))


def _write_gif(part: Path, pixels: np.ndarray, fps: float, text: str | None) -> None:
    # GIF counts in hundredths of a second; browsers play less than two as ten.
    steps = _steps(len(pixels), min(fps, 50), 100)
    own = {} if text is None else image_options("GIF", text)
    # Pillow would join equal frames.
    if _is_apart(pixels) and _saved(part, "GIF", pixels, [10 * each for each in steps], **own):
        return
    part.write_bytes(join_gifs(pixels, steps, **own))


def _write_webp(part: Path, pixels: np.ndarray, fps: float, text: str | None) -> None:
    steps = _steps(len(pixels), fps, 1000)
    options = {"quality": _QUALITY, "method": 4}
    own = {} if text is None else image_options("WEBP", text)
    if _is_apart(pixels) and _saved(part, "WEBP", pixels, steps, **options, **own):
        return
    part.write_bytes(join_webps(pixels, steps, **own, **options))


def _is_apart(pixels: np.ndarray) -> bool:
    """Returns whether no frame equals the one before it."""
    return not any(np.array_equal(one, two) for one, two in itertools.pairwise(pixels))


def _saved(part: Path, kind: str, pixels: np.ndarray, durations: list[int], **options: Any) -> bool:
    """Writes an animation with Pillow; returns whether it holds all frames."""
    images = [image_module().fromarray(frame) for frame in pixels]
    rest = {"append_images": images[1:], "duration": durations, "loop": 0}
    images[0].save(part, kind, save_all=True, **rest, **options)
    with image_module().open(part) as written:
        return written.n_frames == len(pixels)


def _steps(count: int, fps: float, units: int) -> list[int]:
    """Returns the duration of each frame in whole units; their sum does not drift."""
    ends = [round(units * number / fps) for number in range(count + 1)]
    return [after - before for before, after in itertools.pairwise(ends)]
