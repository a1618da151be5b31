"""Images and videos as a model reads them, and what it draws as people see it."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from lwm.errors import UserError
from lwm.media.frames import read_frames
from lwm.tokenizer.message import Vision
from lwm.tokens import TokenSpace
from lwm.vqgan.checkpoint import read_vqgan
from lwm.vqgan.model import VQGAN, decode_frames, encode_frames

_BATCH = 8
"""Frames that each device encodes or decodes at a time."""


class VisionTokenizer:
    """A VQGAN for a model whose codes it makes."""

    def __init__(self, vqgan: VQGAN):
        """Takes a VQGAN on its mesh."""
        self.vqgan = vqgan
        side = vqgan.config.resolution
        self.grid = vqgan.config.grid(side, side)
        """Rows and columns of codes."""

    @classmethod
    def open(cls, path: Path, tokens: TokenSpace, mesh: Mesh) -> "VisionTokenizer":
        """Reads a VQGAN.

        Args:
            path: See `read_vqgan`.
            tokens: Those of the model.
            mesh: Its devices, each of which gets the weights.

        Raises:
            UserError: There is none, or its codes are not those of the model.
        """
        vqgan = read_vqgan(path, mesh=mesh)
        if vqgan.config.codes != tokens.codes:
            raise UserError(
                f"{path} has {vqgan.config.codes} codes, but the model {tokens.codes}: "
                "they are of different models"
            )
        return cls(vqgan)

    @property
    def resolution(self) -> int:
        """Pixels along a side of a frame."""
        return self.vqgan.config.resolution

    @property
    def tokens_per_frame(self) -> int:
        """Codes of a frame."""
        return math.prod(self.grid)

    def read(
        self,
        source: str | Path | bytes,
        *,
        max_frames: int | None = None,
        fps: float | None = None,
        fit: Literal["crop", "letterbox"] = "crop",
        background: str = "white",
        name: str | None = None,
    ) -> Vision:
        """Reads an image or a video; see `lwm.media.frames.read_frames` for the arguments.

        Raises:
            UserError: It cannot be read; the file and the reason are named.
        """
        frames = read_frames(
            source,
            resolution=self.resolution,
            max_frames=max_frames,
            fps=fps,
            fit=fit,
            background=background,
            name=name,
        )
        label = name or ("" if isinstance(source, bytes) else Path(source).name)
        return self.encode(frames.pixels, is_video=frames.is_video, times=frames.times, name=label)

    def encode(
        self,
        pixels: UInt8[np.ndarray, "frames R R 3"],
        *,
        is_video: bool,
        times: np.ndarray | None = None,
        name: str = "",
    ) -> Vision:
        """Returns frames with their codes."""
        codes = encode_frames(self.vqgan, pixels, batch=_BATCH)
        return Vision(
            codes=codes.reshape(len(pixels), -1),
            is_video=is_video,
            pixels=pixels,
            times=times,
            name=name,
        )

    def decode(self, codes: Int[np.ndarray, "frames codes"]) -> UInt8[np.ndarray, "frames R R 3"]:
        """Returns what codes show."""
        squares = codes.reshape(-1, *self.grid)
        pixels = decode_frames(self.vqgan, squares, batch=_BATCH)
        return np.rint((pixels + 1) * 127.5).astype(np.uint8)
