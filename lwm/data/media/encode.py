"""Codes for the frames of records, made in full batches."""

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lwm.data.media.read import Pictures
from lwm.errors import UserError
from lwm.vqgan.checkpoint import find_shipped
from lwm.vqgan.tokenizer import VisionTokenizer


def find_vqgan(model: str | None, vqgan: Path | None) -> Path:
    """Returns the path of a VQGAN: of a model's, or of one that is given by itself.

    Raises:
        UserError: None is given, or both, or the model has none.
    """
    if (model is None) == (vqgan is None):
        raise UserError("give --model or --vqgan: either names the VQGAN that makes the codes")
    if vqgan is not None:
        return find_shipped(vqgan)
    from lwm.convert.open import open_model_files

    assert model is not None
    found = open_model_files(model).vqgan
    if found is None:
        raise UserError(f"{model} has no VQGAN beside it; give one with --vqgan")
    return found


class BatchEncoder:
    """Encodes the frames of records in full batches; writes a record once it has all its codes."""

    def __init__(self, vision: VisionTokenizer, write: Callable[[bytes], object]) -> None:
        """Starts with no record.

        Args:
            vision: Encodes the frames.
            write: Called with each record, as JSON, in the order in which they are added.
        """
        self._vision, self._write = vision, write
        self._frames: deque[tuple[dict[str, Any], np.ndarray]] = deque()
        self._waiting = 0
        self._records: deque[tuple[dict[str, Any], list[dict[str, Any]]]] = deque()

    def add(self, item: Pictures) -> None:
        """Takes a record with its frames, and writes the records that are ready."""
        self._records.append((item.record, item.parts))
        for part, pixels in zip(item.parts, item.pixels, strict=True):
            self._frames.append((part, pixels))
            self._waiting += len(pixels)
        while self._waiting >= self._vision.frames_per_batch:
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
        room = self._vision.frames_per_batch
        while room and self._frames:
            part, pixels = self._frames.popleft()
            if len(pixels) > room:
                self._frames.appendleft((part, pixels[room:]))
            taken.append((part, pixels[:room]))
            room -= len(taken[-1][1])
        codes = self._vision.encode_batch(np.concatenate([pixels for _, pixels in taken]))
        done = 0
        for part, pixels in taken:
            part["vision"] += codes[done : done + len(pixels)].ravel().tolist()
            done += len(pixels)
        self._waiting -= done

    def _write_ready(self) -> None:
        per_frame = self._vision.tokens_per_frame
        while self._records:
            record, parts = self._records[0]
            if any(len(part["vision"]) < part["frames"] * per_frame for part in parts):
                return
            self._write(json.dumps(record, separators=(",", ":")).encode())
            self._records.popleft()
