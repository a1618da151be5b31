"""Pixel values: bytes from 0 to 255, and numbers in [-1, 1] as a VQGAN reads and writes them."""

from typing import Any

import numpy as np


def from_bytes(frames: Any) -> Any:
    """Returns bytes as float32 numbers in [-1, 1]; of a NumPy or a JAX array."""
    return frames.astype(np.float32) / 127.5 - 1


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """Returns numbers in [-1, 1] as the nearest bytes; numbers outside are clipped."""
    return np.clip(np.rint((frames + 1) * 127.5), 0, 255).astype(np.uint8)
