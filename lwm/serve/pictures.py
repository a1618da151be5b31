"""Files of generated images and videos, as bytes and as `data:` addresses."""

import base64
import tempfile
from pathlib import Path
from typing import Any

import lwm
from lwm.serve.sse import to_json
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
        text: A text in the file, see `note`.
    """
    # The writers of videos need a file: they return to its start.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"made.{kind}"
        vision.save(path, fps=fps, text=text)
        return path.read_bytes()


def note(*, model: str, seed: int, prompt: str | None = None, **settings: Any) -> str:
    """Returns the text of a file: what it was generated from and with, as JSON.

    Args:
        model: The model's name.
        seed: The seed of the answer.
        prompt: The text that the file shows, if it is a request of its own.
        **settings: The sampling.
    """
    asked = {} if prompt is None else {"prompt": prompt}
    made = {"seed": seed, "model": model, "software": f"lwm {lwm.__version__}"}
    return to_json(asked | made | settings).decode()


def data_address(data: bytes, media_type: str) -> str:
    """Returns a `data:` address."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
