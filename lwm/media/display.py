"""Images and videos as notebooks show them."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from lwm.media.limits import image_module

_SIDE = 256
"""Pixels along a side that smaller pictures are enlarged to, by a whole factor."""
_SECONDS = 0.25
"""Time of a frame whose time is unknown."""
_LONGEST = 1.0
"""Time of a frame at most: frames of a film may be minutes apart."""


def png_of(pixels: UInt8[np.ndarray, "R C 3"]) -> bytes:
    """Returns a PNG; small pictures are enlarged, each pixel to a square."""
    made = io.BytesIO()
    image_module().fromarray(_enlarged(pixels)).save(made, "PNG")
    return made.getvalue()


def image_html(pixels: UInt8[np.ndarray, "R C 3"], label: str) -> str:
    """Returns an `img` element with the picture in it."""
    return _element("png", png_of(pixels), label)


def video_html(
    pixels: UInt8[np.ndarray, "N R C 3"], times: Float[np.ndarray, " N"] | None, label: str
) -> str:
    """Returns an `img` element with an animated WebP that repeats."""
    first, *rest = (image_module().fromarray(_enlarged(frame)) for frame in pixels)
    made = io.BytesIO()
    durations = _durations(len(pixels), times)
    first.save(
        made, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, quality=90
    )
    return _element("webp", made.getvalue(), label)


def side_by_side(elements: Sequence[str]) -> str:
    """Returns elements in rows that wrap."""
    style = "display:flex;flex-wrap:wrap;gap:8px"
    return f'<div style="{style}">{"".join(elements)}</div>'


def _enlarged(pixels: UInt8[np.ndarray, "R C 3"]) -> UInt8[np.ndarray, "r c 3"]:
    factor = max(1, _SIDE // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _durations(count: int, times: Float[np.ndarray, " N"] | None) -> list[int]:
    """Returns the milliseconds of each frame; the last is shown as long as the one before it."""
    if times is None or count == 1:
        return [round(1000 * _SECONDS)] * count
    steps = np.diff(times)
    return [max(1, round(1000 * min(_LONGEST, step))) for step in (*steps, steps[-1])]


def _element(kind: str, data: bytes, label: str) -> str:
    content, label = base64.b64encode(data).decode("ascii"), html.escape(label)
    return f'<img alt="{label}" title="{label}" src="data:image/{kind};base64,{content}">'
