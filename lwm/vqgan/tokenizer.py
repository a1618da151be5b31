"""The vision tokenizer: frames of images and videos to codes of a VQGAN, and back."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Generator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from lwm.errors import UserError
from lwm.media.pixels import to_bytes
from lwm.model.config import Dtype
from lwm.sharding import dotted
from lwm.tokens import TokenSpace
from lwm.vqgan.checkpoint import read_vqgan, require_codes
from lwm.vqgan.config import CodebookInfo
from lwm.vqgan.model import VQGAN, decode_frames, encode_frames, mesh_of


class VisionTokenizer:
    """A tokenizer of frames, for language models and data sets: the only interface that they use.

    It states its codes, codes and frames per unit, sizes of frames, fingerprint, and whether it
    decodes. It wraps a VQGAN, whose units are single frames.

    Axes: N frames, R × R pixels, T codes of a frame in row-major order.
    """

    frames_per_unit = 1
    """Frames whose codes depend on each other."""

    def __init__(self, vqgan: VQGAN, *, batch: int = 8, source: str = "") -> None:
        """Wraps a VQGAN on its mesh.

        Args:
            vqgan: Its configuration has the size of the frames.
            batch: Frames that each device encodes or decodes at a time.
            source: The path of the VQGAN, for `codebook`.

        Raises:
            UserError: The batch is below 1.
        """
        if batch < 1:
            raise UserError(f"batch {batch} must be at least 1")
        self.vqgan = vqgan
        self._batch, self._source = batch, source
        side = vqgan.config.resolution
        self.grid = vqgan.config.grid(side, side)
        """Rows and columns of codes."""
        self.frames_per_batch = batch * mesh_of(vqgan).size
        """Frames that all devices encode at a time."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        mesh: Mesh | None = None,
        tokens: TokenSpace | None = None,
        dtype: Dtype | None = None,
        resolution: int | None = None,
        batch: int = 8,
    ) -> "VisionTokenizer":
        """Reads a VQGAN; `read_vqgan` has the other arguments.

        Args:
            tokens: The token space of the language model that reads the codes, if there is one.
            batch: Frames that each device encodes or decodes at a time.

        Raises:
            UserError: There is no VQGAN, its codes are not those of the model, or the resolution
                does not divide into codes.
        """
        vqgan = read_vqgan(path, mesh=mesh, dtype=dtype, resolution=resolution)
        if tokens is not None:
            require_codes(path, vqgan.config.codes, tokens)
        return cls(vqgan, batch=batch, source=str(Path(path).absolute()))

    @property
    def codes(self) -> int:
        """Entries of the codebook."""
        return self.vqgan.config.codes

    @property
    def codes_per_unit(self) -> int:
        """Codes of a unit, which is `frames_per_unit` frames."""
        return self.tokens_per_frame * self.frames_per_unit

    @property
    def resolution(self) -> int:
        """Pixels along a side of a frame."""
        return self.vqgan.config.resolution

    @property
    def side_multiple(self) -> int:
        """Number of which any `resolution` must be a multiple."""
        return self.vqgan.config.downsampling

    @property
    def tokens_per_frame(self) -> int:
        """Codes of a frame."""
        return self.vqgan.config.tokens_per_frame

    @property
    def decodes(self) -> bool:
        """True if codes can be turned into frames; some tokenizers only read."""
        return self.vqgan.config.decoder

    def require_decoder(self) -> None:
        """Refuses a tokenizer that only reads.

        Raises:
            UserError: It is one.
        """
        self.vqgan.config.require_decoder()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the codes depend on."""
        return vqgan_fingerprint(self.vqgan)

    @functools.cached_property
    def codebook(self) -> CodebookInfo:
        """Facts about the VQGAN that data sets store with its codes."""
        config = self.vqgan.config
        return CodebookInfo(
            source=self._source,
            fingerprint=self.fingerprint,
            resolution=config.resolution,
            codes=self.codes,
            tokens_per_frame=self.tokens_per_frame,
            dtype=config.encoder_dtype,
        )

    def encode(self, frames: UInt8[np.ndarray, "N R R 3"]) -> Int[np.ndarray, "N T"]:
        """Returns the codes of any number of frames.

        Raises:
            UserError: A device has too little memory for a batch.
        """
        with self._within_memory():
            return encode_frames(self.vqgan, frames, batch=self._batch).reshape(len(frames), -1)

    def encode_batch(self, frames: UInt8[np.ndarray, "N R R 3"]) -> Int[np.ndarray, "N T"]:
        """Encodes at most `frames_per_batch` frames, padded to that number.

        So only one program is compiled, and the codes do not depend on the number of frames.

        Raises:
            UserError: A device has too little memory for a batch.
        """
        assert len(frames) <= self.frames_per_batch
        missing = self.frames_per_batch - len(frames)
        return self.encode(np.pad(frames, [(0, missing), (0, 0), (0, 0), (0, 0)]))[: len(frames)]

    def decode(self, codes: Int[np.ndarray, "N T"]) -> UInt8[np.ndarray, "N R R 3"]:
        """Returns the frames of any number of codes.

        Raises:
            UserError: A code is not in the codebook, there is no decoder, or a device has too
                little memory for a batch.
        """
        whole = codes.reshape(-1, *self.grid)
        with self._within_memory():
            return to_bytes(decode_frames(self.vqgan, whole, batch=self._batch))

    @contextlib.contextmanager
    def _within_memory(self) -> Generator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"{self._batch} frames at a time are too many for a device's memory; free some of "
                "it, or give fewer (--batch of lwm tokenize)"
            ) from None


def vqgan_fingerprint(vqgan: VQGAN) -> str:
    """Returns a SHA-256 over the weights, independent of the file that they were read from.

    Rules of the choice of codes are part of it, if they are not those of LWM's VQGANs.
    """
    digest = hashlib.sha256()
    rules = {k: v for k, v in vqgan.config.to_json().items() if k in ("search", "unit_codes")}
    if rules:
        digest.update(json.dumps(rules).encode())
    leaves = {dotted(path): leaf for path, leaf in jax.tree.leaves_with_path(vqgan)}
    for name, leaf in sorted(leaves.items()):
        array = np.ascontiguousarray(leaf)
        digest.update(json.dumps([name, array.shape, str(array.dtype)]).encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()
