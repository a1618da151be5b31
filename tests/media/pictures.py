"""Test pictures, and their encoding as files."""

import io

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

SIDE = 32


def picture(width=SIDE, height=SIDE, channels=3):
    """Returns a smooth picture that no turn and no flip leaves as it is."""
    coarse = np.random.default_rng(width * 1000 + height).integers(0, 256, (5, 4, channels))
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    image = Image.frombytes(mode, (4, 5), coarse.astype(np.uint8).tobytes())
    return image.resize((width, height), Image.Resampling.BICUBIC)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def levels(count):
    """Returns frames that tell their number by their grey."""
    return [np.full((48, 64, 3), 10 + 3 * i, np.uint8) for i in range(count)]


def numbers(pixels):
    return [round((float(frame.mean()) - 10) / 3) for frame in pixels]
