"""Images and frames that a program holds in memory: Pillow's images and arrays."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lwm.errors import UserError
from lwm.media.images import is_animated, read_animation, read_still
from lwm.media.limits import Budget, Clip, FrameSelector, Resizer, SelectedFrame, image_module

WANTED = "give a path, the bytes of a file, an image of Pillow, or an array of uint8"


def is_in_memory(value: Any) -> bool:
    """Returns whether a value may be pixels: an image of Pillow, an array, or a list of these."""
    if isinstance(value, list | tuple):
        return bool(value) and all(_is_picture(each) for each in value)
    return _is_picture(value)


def _is_picture(value: Any) -> bool:
    # Pillow is not imported for this: a value of its class means that it has been.
    return hasattr(value, "__array__") or hasattr(value, "getexif")


def clip_in_memory(
    value: Any, selector: FrameSelector, resize: Resizer, budget: Budget
) -> tuple[Clip, bool]:
    """Returns the selected frames of pixels, and whether they are a video.

    Args:
        value: An image of Pillow; an array of an image, `H W`, `H W 3` or `H W 4`, or of the frames
            of a video, `T H W C`; or a list of images, which are the frames of a video.
        selector: Selects frames; only those of an animated image of Pillow have times, the times
            of others are NaN.
        resize: Makes a frame square.
        budget: Limits on pixels.

    Raises:
        UserError: The value is none of these, or `fps` is given for frames without times.
    """
    if hasattr(value, "getexif"):
        if is_animated(value):
            return read_animation(value, selector, resize, budget), True
        # A copy: decoding may change the image, and it is the caller's.
        return read_still(value.copy(), resize, budget), False
    if isinstance(value, list | tuple):
        return _video(value, selector, resize, budget), True
    pixels = _checked(np.asarray(value), budget.name)
    if pixels.ndim < 4:
        return read_still(image_module().fromarray(pixels), resize, budget), False
    return _video(pixels, selector, resize, budget), True


def _video(
    frames: Sequence[Any] | np.ndarray, selector: FrameSelector, resize: Resizer, budget: Budget
) -> Clip:
    if selector.fps is not None:
        raise UserError(f"{budget.name} has no times: give max_frames in place of fps")
    selected = selector.spread(len(frames))

    def read() -> Iterator[SelectedFrame]:
        for number in selected:
            clip, is_video = clip_in_memory(frames[number], selector, resize, budget)
            if is_video:
                raise UserError(f"{budget.name}: frame {number} is no single image")
            yield next(clip.frames)._replace(time=math.nan)

    return Clip(frames=read(), num_selected=len(selected), count=len(frames), duration=0.0)


def _checked(array: np.ndarray, name: str) -> UInt8[np.ndarray, "..."]:
    """Returns an array with its colours; refuses one that is no image and no video."""
    if array.ndim > 2 and array.shape[-1] == 1:
        array = np.repeat(array, 3, -1)
    if array.dtype != np.uint8:
        raise UserError(f"{name} holds {array.dtype}; give uint8, from 0 to 255")
    is_grey = array.ndim == 2
    if array.ndim not in (2, 3, 4) or not array.size or not (is_grey or array.shape[-1] in (3, 4)):
        raise UserError(
            f"{name} has the shape {array.shape}; an image has height, width and 3 colours, and a "
            "video its frames before them"
        )
    return array
