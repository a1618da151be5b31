"""Files of generated images and videos, as bytes and as `data:` addresses."""

import base64
import tempfile
from pathlib import Path

from lwm.tokenizer.message import Vision

IMAGE_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
VIDEO_TYPES = {"mp4": "video/mp4", "gif": "image/gif", "webp": "image/webp"}
FPS = 4.0
"""Frames per second of a video's file, where the request does not say."""


def encoded(vision: Vision, kind: str, *, fps: float = FPS, text: str | None = None) -> bytes:
    """Returns the file of an image or a video with pixels.

    Args:
        vision: The image or video.
        kind: One of `IMAGE_TYPES` or `VIDEO_TYPES`.
        fps: Frames per second of a video.
        text: A text in the file, see `lwm.media.text.note`.
    """
    # The writers of videos need a file: they return to its start.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"made.{kind}"
        vision.save(path, fps=fps, text=text)
        return path.read_bytes()


def data_address(data: bytes, media_type: str) -> str:
    """Returns a `data:` address."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
