"""Frames to codes of a VQGAN, in batches of one size."""

import hashlib
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from lwm.data.media.read import Pictures
from lwm.data.media.summary import CodebookInfo
from lwm.errors import UserError
from lwm.model.config import Dtype
from lwm.sharding import dotted, make_mesh
from lwm.vqgan.checkpoint import find_shipped, read_vqgan
from lwm.vqgan.model import VQGAN, encode_frames


class Coder:
    """A VQGAN, opened: frames in, codes out, always in batches of one size.

    So the codes of a shard do not depend on what else was encoded, or when.
    """

    def __init__(
        self,
        path: Path,
        *,
        mesh: str = "1,1,1,1",
        dtype: Dtype | None = None,
        resolution: int | None = None,
        batch: int = 16,
    ) -> None:
        """Opens the VQGAN.

        Args:
            path: See `read_vqgan`.
            mesh: The devices; frames are encoded on each.
            dtype: What is computed in; by default what the VQGAN says.
            resolution: Pixels along a side of the frames; by default the VQGAN's.
            batch: Frames of each device at a time.

        Raises:
            UserError: There is no VQGAN, or the resolution does not divide into codes.
        """
        if batch < 1:
            raise UserError(f"batch {batch} must be at least 1")
        devices = make_mesh(mesh)
        self._model = read_vqgan(path, mesh=devices, dtype=dtype)
        self._batch = batch
        self.size = batch * devices.size
        """Frames in a batch."""
        config = self._model.config
        side = resolution or config.resolution
        rows, columns = config.grid(side, side)
        self.codebook = CodebookInfo(
            source=str(Path(path).absolute()),
            fingerprint=vqgan_fingerprint(self._model),
            resolution=side,
            codes=config.codes,
            tokens_per_frame=rows * columns,
            dtype=config.dtype,
        )

    def __call__(self, frames: UInt8[np.ndarray, "N R R 3"]) -> Int[np.ndarray, "N tokens"]:
        """Returns the codes of at most `size` frames.

        Raises:
            UserError: A device has too little memory for a batch.
        """
        assert len(frames) <= self.size
        filled = np.pad(frames, [(0, self.size - len(frames)), (0, 0), (0, 0), (0, 0)])
        try:
            codes = encode_frames(self._model, filled, batch=self._batch)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"{self._batch} frames at a time are too many for a device's memory; give a "
                "smaller --batch"
            ) from None
        return codes.reshape(self.size, -1)[: len(frames)]


def vqgan_fingerprint(model: VQGAN) -> str:
    """Returns a SHA-256 over the weights, whatever file they came from."""
    found = hashlib.sha256()
    leaves = {dotted(path): leaf for path, leaf in jax.tree.leaves_with_path(model)}
    for name, leaf in sorted(leaves.items()):
        array = np.ascontiguousarray(leaf)
        found.update(json.dumps([name, array.shape, str(array.dtype)]).encode())
        found.update(array.view(np.uint8).data)
    return found.hexdigest()


def find_vqgan(model: str | None, vqgan: Path | None) -> Path:
    """Returns where a VQGAN is, given one of two ways.

    Raises:
        UserError: None is given, or both, or the model has none.
    """
    if (model is None) == (vqgan is None):
        raise UserError("give --model or --vqgan: either says what makes frames codes")
    if vqgan is not None:
        return find_shipped(vqgan)
    from lwm.convert.open import open_model_files

    assert model is not None
    found = open_model_files(model).vqgan
    if found is None:
        raise UserError(f"{model} has no VQGAN beside it; give one with --vqgan")
    return found


class Encoding:
    """Records whose frames wait for their batch; each is written once its codes are there."""

    def __init__(self, coder: Coder, write: Callable[[bytes], object]) -> None:
        self._coder, self._write = coder, write
        self._frames: deque[tuple[dict[str, Any], np.ndarray]] = deque()
        self._waiting = 0
        self._records: deque[tuple[dict[str, Any], list[dict[str, Any]]]] = deque()

    def add(self, item: Pictures) -> None:
        """Takes an item, and writes those that are ready."""
        self._records.append((item.record, item.parts))
        for part, pixels in zip(item.parts, item.pixels, strict=True):
            self._frames.append((part, pixels))
            self._waiting += len(pixels)
        while self._waiting >= self._coder.size:
            self._encode()
        self._write_ready()

    def finish(self) -> None:
        """Encodes and writes what is left."""
        while self._waiting:
            self._encode()
        self._write_ready()
        assert not self._records

    def _encode(self) -> None:
        """Encodes one batch."""
        taken: list[tuple[dict[str, Any], np.ndarray]] = []
        room = self._coder.size
        while room and self._frames:
            part, pixels = self._frames.popleft()
            if len(pixels) > room:
                self._frames.appendleft((part, pixels[room:]))
            taken.append((part, pixels[:room]))
            room -= len(taken[-1][1])
        codes = self._coder(np.concatenate([pixels for _, pixels in taken]))
        done = 0
        for part, pixels in taken:
            part["vision"] += codes[done : done + len(pixels)].ravel().tolist()
            done += len(pixels)
        self._waiting -= done

    def _write_ready(self) -> None:
        per_frame = self._coder.codebook.tokens_per_frame
        while self._records:
            record, parts = self._records[0]
            if any(len(part["vision"]) < part["frames"] * per_frame for part in parts):
                return
            self._write(json.dumps(record, separators=(",", ":")).encode())
            self._records.popleft()
