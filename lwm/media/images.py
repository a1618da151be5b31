"""Images and animated images, by Pillow."""

import contextlib
from collections.abc import Generator
from io import BufferedIOBase
from typing import Any

import numpy as np

from lwm.errors import UserError
from lwm.files import require_package
from lwm.media.limits import Choice, Clip, Fit, Work, flatten, image_module

_FORMATS = (
    *("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000"),
    *("PNG", "PPM", "QOI", "TIFF", "WEBP"),
)
"""Others are left out: some run programs (EPS), some match almost anything (TGA)."""
_ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")
"""The pages of a TIFF and the views of a stereo JPEG are not moments."""
_COPIES = 8
"""Pixels of a video that are decoded in the time of one of these, which are copied whole."""
_UNTIMED = 0.1
"""Seconds that a frame lasts which says 0: as in browsers."""

_BITS, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274
_LEVELS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""By how much Pillow multiplies the values of a PNG, but not the one that is transparent."""


def open_image(file: BufferedIOBase, work: Work) -> Any:
    """Opens an image without decoding it; None if the content is none, or too long for one.

    Raises:
        UserError: It is too large.
    """
    if work.size > work.limits.image_bytes:
        return None
    image = image_module()
    try:
        opened = image.open(file, formats=_FORMATS)
    except image.UnidentifiedImageError:
        return None
    except (image.DecompressionBombError, image.DecompressionBombWarning):
        raise UserError(
            f"{work.name} claims more pixels than Pillow's MAX_IMAGE_PIXELS allows"
        ) from None
    work.check(*opened.size, still=not is_animated(opened))
    _scale_key(opened)
    return opened


def _scale_key(image: Any) -> None:
    """Makes the colour that stands for transparency in a PNG one of 8 bits, as its pixels are."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not image.tile:
        return
    if (factor := _LEVELS.get(image.tile[0][3])) is not None:
        scaled = [int(value * factor) for value in (key if isinstance(key, tuple) else (key,))]
        image.info["transparency"] = tuple(scaled) if len(scaled) > 1 else scaled[0]


def is_animated(image: Any) -> bool:
    """Returns whether an image is a video."""
    return image.format in _ANIMATED and getattr(image, "is_animated", False)


def read_still(image: Any, background: tuple[int, int, int], work: Work) -> Any:
    """Decodes an image: upright, as RGB."""
    work.charge(image.width * image.height)
    image.load()
    # Pillow may only now know the true size, as of what an icon holds.
    work.check(*image.size, still=True)
    orientation = 1
    with contextlib.suppress(Exception):  # damaged EXIF data is common, and turns nothing
        orientation = image.getexif().get(_ORIENTATION, 1)
    turn = turns().get(orientation)
    if turn is not None:  # one of them is 0
        image = image.transpose(turn)
    return flatten(_eight_bits(image), background)


def turns() -> dict[int, Any]:
    """Returns what turns a picture upright, by EXIF's number for how it lies."""
    way = image_module().Transpose
    return {
        2: way.FLIP_LEFT_RIGHT,
        3: way.ROTATE_180,
        4: way.FLIP_TOP_BOTTOM,
        5: way.TRANSPOSE,
        6: way.ROTATE_270,
        7: way.TRANSVERSE,
        8: way.ROTATE_90,
    }


class Animation:
    """The frames of an animated image, which can only be decoded one after the other."""

    def __init__(self, image: Any, work: Work) -> None:
        """Counts the frames.

        Args:
            image: The image.
            work: Is charged for all frames at once, before one is decoded.
        """
        self._image = image
        self._work = work
        # A PNG may show another picture to those who know no animations.
        self._first = int(getattr(image, "default_image", False))
        self.count = image.n_frames - self._first
        work.charge(_COPIES * image.width * image.height, self.count)
        self.duration = 0.0

    def read(self, choice: Choice, fit: Fit) -> Clip:
        """Decodes the frames that are wanted, and those before them."""
        size = self._image.size
        if choice.fps is None:
            wanted = set(choice.spread(self.count))
        else:
            self._work.charge(_COPIES * size[0] * size[1], self.count)
            times = [start for start, _ in self._frames()]
            wanted = set(choice(np.array(times), self.duration))
        times, pixels = [], []
        for number, (start, image) in enumerate(self._frames()):
            if number in wanted:
                times.append(start)
                pixels.append(fit(flatten(_eight_bits(image), fit.background)))
        return Clip(times=times, pixels=pixels, count=self.count, duration=self.duration, size=size)

    def _frames(self) -> Generator[tuple[float, Any]]:
        image, milliseconds = self._image, 0.0
        for number in range(self._first, self._first + self.count):
            image.seek(number)
            self._work.check(*image.size, still=False)
            image.load()
            yield milliseconds / 1000, image
            milliseconds += float(image.info.get("duration", 0)) or _UNTIMED * 1000
        self.duration = milliseconds / 1000


def _eight_bits(image: Any) -> Any:
    """Returns an image whose pixels are none of 16 bits, floats or LAB.

    Raises:
        ValueError: What its pixels mean cannot be known.
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
