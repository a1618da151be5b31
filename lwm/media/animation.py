"""Animated GIF and WebP files that keep every frame, also those that equal the one before.

Pillow and libwebp join equal frames, and even write a clip of them as a still.
"""

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lwm.media.limits import image_module

Pixels = UInt8[np.ndarray, "N R C 3"]


def join_gifs(pixels: Pixels, steps: list[int], *, comment: bytes = b"") -> bytes:
    """Returns a GIF of whole frames; a frame that is shown again is a dot in its own colour.

    Args:
        pixels: The frames.
        steps: The duration of each frame in hundredths of a second.
        comment: A text in the file.
    """
    height, width = pixels.shape[1:3]
    parts = [b"GIF89a", struct.pack("<HHBBB", width, height, 0, 0, 0)]
    parts.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")  # played for ever
    if comment:
        blocks = [comment[start : start + 255] for start in range(0, len(comment), 255)]
        parts += [b"\x21\xfe", *(bytes([len(block)]) + block for block in blocks), b"\0"]
    frames = _encoded(pixels, "GIF", {}, {})
    for data, step in zip(frames, steps, strict=True):
        # The file of one frame: header and screen of 13 bytes, palette, frame, end.
        bits = data[10] & 7
        start = 13 + 3 * 2 ** (bits + 1)
        palette, frame = data[13:start], data[start:-1]
        control = struct.pack("<BHBB", 1 << 2, step, 0, 0)  # left in place for the next one
        parts += [b"\x21\xf9\x04", control, frame[:9], bytes([frame[9] | 0x80 | bits])]
        parts += [palette, frame[10:]]
    return b"".join([*parts, b";"])


def join_webps(pixels: Pixels, steps: list[int], *, exif: bytes = b"", **options: Any) -> bytes:
    """Returns a WebP of whole frames; a frame that is shown again is a dot in its own colour.

    Args:
        pixels: The frames.
        steps: The duration of each frame in milliseconds.
        exif: Texts in the file.
        options: Of Pillow, for each frame.
    """
    height, width = pixels.shape[1:3]
    size = _wide(width - 1) + _wide(height - 1)
    flags = 2 | (8 if exif else 0)  # an animation, with EXIF
    parts = [_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size), _chunk(b"ANIM", bytes(6))]  # for ever
    frames = _encoded(pixels, "WEBP", options, {"lossless": True})
    for data, step in zip(frames, steps, strict=True):
        opened = image_module().open(io.BytesIO(data))
        place = bytes(6) + _wide(opened.width - 1) + _wide(opened.height - 1)
        parts.append(_chunk(b"ANMF", place + _wide(step) + b"\2" + data[12:]))  # not blended
    if exif:
        parts.append(_chunk(b"EXIF", exif.removeprefix(b"Exif\0\0")))
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _encoded(
    pixels: Pixels, kind: str, options: dict[str, Any], exact: dict[str, Any]
) -> Iterator[bytes]:
    """Yields a file for each frame; of one pixel if the frame equals the one before."""
    before, dot = None, b""
    for frame in pixels:
        if before is not None and np.array_equal(frame, before):
            yield dot
            continue
        image_module().fromarray(frame).save(whole := io.BytesIO(), kind, **options)
        yield whole.getvalue()
        # Its first pixel as it is read back.
        corner = image_module().open(whole).convert("RGB").crop((0, 0, 1, 1))
        corner.save(small := io.BytesIO(), kind, **exact)
        before, dot = frame, small.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _wide(value: int) -> bytes:
    """Encodes a number in three bytes."""
    return value.to_bytes(3, "little")
