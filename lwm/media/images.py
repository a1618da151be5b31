"""Reads images and animated images with Pillow."""

import contextlib
import struct
from collections.abc import Collection, Iterator
from io import BufferedIOBase
from typing import Any

import numpy as np

from lwm.errors import UserError
from lwm.files import require_package
from lwm.media.limits import (
    SMALLER,
    Budget,
    Clip,
    FrameSelector,
    Resizer,
    SelectedFrame,
    flatten,
    image_module,
)
from lwm.media.png import SIGNATURE, without_long_texts

_FORMATS = (
    *("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000"),
    *("PNG", "PPM", "QOI", "TIFF", "WEBP"),
)
"""Formats that are read; others run programs (EPS) or match almost any content (TGA)."""
_ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")
"""Formats with frames in time; the pages of a TIFF and the views of a stereo JPEG are not."""
_COPIES = 8
"""Cost of a pixel of an animation relative to one of a video: each frame is copied whole."""
_UNTIMED = 0.1
"""Seconds of a frame whose duration is 0, as in browsers."""

_ICON = b"\0\0\1\0"
_JPEG = b"\xff\xd8\xff"
_PART = b"\xff\xda"
"""The marker that starts a part of a JPEG."""
_HELD = 2
"""Times the limit of pixels that a JPEG may have which is held whole in memory."""

_BITS, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274
_LEVELS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""Factor by which Pillow scales the values of a PNG, but not its transparent colour."""


def open_image(file: BufferedIOBase, budget: Budget) -> Any:
    """Opens an image without decoding it; returns None if the content is no image or too long.

    Raises:
        UserError: The image has too many pixels.
    """
    if budget.size > budget.limits.image_bytes:
        return None
    image = image_module()
    start = file.read(len(SIGNATURE))
    file.seek(0)
    try:
        if start.startswith(_JPEG):
            # Not `Image.open`: it limits the pixels of the file, not those that are decoded. Of the
            # pictures that some phones put into one file, this opens the first.
            plugin = require_package("PIL.JpegImagePlugin", "reading JPEG", "media")
            opened = plugin.JpegImageFile(file)
        else:
            if start.startswith(_ICON):
                _check_icons(file, budget)
            source = without_long_texts(file) if start == SIGNATURE else file
            opened = image.open(source, formats=_FORMATS)
    except (image.UnidentifiedImageError, SyntaxError):
        return None
    except (image.DecompressionBombError, image.DecompressionBombWarning):
        raise UserError(
            f"{budget.name} claims more pixels than Pillow's MAX_IMAGE_PIXELS allows; {SMALLER}"
        ) from None
    budget.check(*reduced_size(opened, budget), still=not is_animated(opened))
    _scale_key(opened)
    return opened


def reduced_size(image: Any, budget: Budget) -> tuple[int, int]:
    """Returns the size at which an image is decoded: its own, or of a large JPEG down to an eighth.

    Some JPEGs are held whole in memory even so, by about as much as decoded; they may be larger
    by `_HELD` only.
    """
    width, height = image.size
    most = budget.limits.pixels
    if image.format != "JPEG" or width * height <= most:
        return width, height
    if width * height > _HELD * most and _is_held_whole(image):
        return width, height
    scales = [(-(-width // scale), -(-height // scale)) for scale in (2, 4, 8)]
    return next((size for size in scales if size[0] * size[1] <= most), scales[-1])


def _is_held_whole(jpeg: Any) -> bool:
    """Returns whether a JPEG is in several parts, each over the whole picture: so progressive ones.

    The file is at the end of the header of the first part, which lists the channels in it.
    """
    size = 6 + 2 * jpeg.layers
    end = jpeg.fp.tell()
    jpeg.fp.seek(max(0, end - size - 2))
    header = jpeg.fp.read(4)
    jpeg.fp.seek(end)
    return "progressive" in jpeg.info or header != _PART + struct.pack(">H", size)


def _passes(image: Any) -> int:
    """Returns how often decoding goes over a whole picture: for each part of such a JPEG.

    A part needs few bytes. Within its data the marker that starts another cannot occur.
    """
    if image.format != "JPEG" or not _is_held_whole(image):
        return 1
    at = image.fp.tell()
    image.fp.seek(0)
    passes = image.fp.read().count(_PART)
    image.fp.seek(at)
    return passes


def _check_icons(file: BufferedIOBase, budget: Budget) -> None:
    """Checks the pictures of an icon, which Pillow decodes as it opens the file.

    Raises:
        UserError: One has too many pixels; the list of them may say otherwise.
    """
    count = struct.unpack("<H", file.read(6)[4:6])[0]
    for number in range(count):
        file.seek(6 + 16 * number)
        entry = file.read(16)
        if len(entry) < 16:
            break
        file.seek(struct.unpack("<I", entry[12:])[0])
        head = file.read(24)
        if head.startswith(SIGNATURE) and len(head) == 24:
            budget.check(*struct.unpack(">II", head[16:]), still=True)
    file.seek(0)


def _scale_key(image: Any) -> None:
    """Scales the transparent colour of a PNG to 8 bits, as Pillow does with the pixels."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not image.tile:
        return
    if (factor := _LEVELS.get(image.tile[0][3])) is not None:
        scaled = [int(value * factor) for value in (key if isinstance(key, tuple) else (key,))]
        image.info["transparency"] = tuple(scaled) if len(scaled) > 1 else scaled[0]


def is_animated(image: Any) -> bool:
    """Returns whether an image is an animation."""
    return image.format in _ANIMATED and getattr(image, "is_animated", False)


def read_still(image: Any, resize: Resizer, budget: Budget) -> Clip:
    """Returns an image, upright, as its only frame."""
    frames = (_still(image, resize, budget) for _ in range(1))
    return Clip(frames=frames, num_selected=1, count=1, duration=0.0)


def _still(image: Any, resize: Resizer, budget: Budget) -> SelectedFrame:
    budget.charge(image.width * image.height, _passes(image))
    size, reduced = image.size, reduced_size(image, budget)
    if reduced != size:
        image.draft(None, reduced)
    image.load()
    # Pillow may know the true size only now, as for icons.
    budget.check(*image.size, still=True)
    size = image.size if reduced == size else size
    orientation = 1
    with contextlib.suppress(Exception):  # damaged EXIF data is common and ignored
        orientation = image.getexif().get(_ORIENTATION, 1)
    operation = transpositions().get(orientation)
    if operation is not None:  # one of them is 0
        image = image.transpose(operation)
        size = size[::-1] if orientation >= 5 else size
    return SelectedFrame(0.0, resize(flatten(_eight_bits(image), resize.background)), size)


def transpositions() -> dict[int, Any]:
    """Returns the operation that makes a picture upright, by its EXIF orientation."""
    operation = image_module().Transpose
    return {
        2: operation.FLIP_LEFT_RIGHT,
        3: operation.ROTATE_180,
        4: operation.FLIP_TOP_BOTTOM,
        5: operation.TRANSPOSE,
        6: operation.ROTATE_270,
        7: operation.TRANSVERSE,
        8: operation.ROTATE_90,
    }


def read_animation(image: Any, selector: FrameSelector, resize: Resizer, budget: Budget) -> Clip:
    """Selects frames of an animated image; each is decoded when it is taken.

    Frames can only be decoded in order. The budget is charged for all of them before the first.
    """
    # An APNG may have a separate picture for viewers that cannot play animations.
    first = int(getattr(image, "default_image", False))
    count, size = image.n_frames - first, image.size
    cost = _COPIES * size[0] * size[1]
    budget.charge(cost, count)

    def decode(numbers: Collection[int]) -> Iterator[tuple[float, SelectedFrame | None]]:
        """Yields the end of each frame, and some of the frames themselves."""
        milliseconds = 0.0
        for number in range(count):
            budget.require_time()
            image.seek(first + number)
            budget.check(*image.size, still=False)
            image.load()
            start = milliseconds / 1000
            milliseconds += float(image.info.get("duration", 0)) or _UNTIMED * 1000
            frame = None
            if number in numbers:
                pixels = resize(flatten(_eight_bits(image), resize.background))
                frame = SelectedFrame(start, pixels, size)
            yield milliseconds / 1000, frame

    if selector.fps is None:
        selected = selector.spread(count)
    else:
        budget.charge(cost, count)
        ends = [end for end, _ in decode(())]
        selected = selector(np.array([0.0, *ends[:-1]]), ends[-1])

    def frames() -> Iterator[SelectedFrame]:
        for end, frame in decode(frozenset(selected)):
            clip.duration = end
            if frame is not None:
                yield frame

    clip = Clip(frames=frames(), num_selected=len(selected), count=count, duration=0.0)
    return clip


def _eight_bits(image: Any) -> Any:
    """Converts an image of 16 bits or LAB to 8 bits.

    Raises:
        ValueError: The range of the pixels is unknown.
    """
    if image.mode == "LAB":
        return _from_lab(image)
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"its pixels are {kind} of unknown range; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    tags = getattr(image, "tag_v2", {})
    highest = (1 << min(16, *tags.get(_BITS, (16,)), 16)) - 1
    values = np.asarray(image).astype(np.uint32)
    grey = ((np.minimum(values, highest) * 255 + highest // 2) // highest).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:
        grey = 255 - grey
    made = image_module().fromarray(grey)
    if (key := image.info.get("transparency")) is not None:
        made.putalpha(image_module().fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return made


def _from_lab(image: Any) -> Any:
    colours = require_package("PIL.ImageCms", "reading LAB images", "media")
    lab, rgb = colours.createProfile("LAB"), colours.createProfile("sRGB")
    return colours.profileToProfile(image, lab, rgb, outputMode="RGB")
