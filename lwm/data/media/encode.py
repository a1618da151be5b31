"""Codes for the frames of records, made in full batches."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lwm.data.media.read import Pictures
from lwm.errors import UserError
from lwm.vqgan.checkpoint import locate_vqgan
from lwm.vqgan.tokenizer import VisionTokenizer


def find_vqgan(model: str | None, vqgan: Path | None) -> Path:
    """Returns the path of a VQGAN: of a model's, or of one that is given by itself.

    Raises:
        UserError: None is given, or both, or the model has none.
    """
    if (model is None) == (vqgan is None):
        raise UserError("give --model or --vqgan: either names the VQGAN that makes the codes")
    if vqgan is not None:
        return locate_vqgan(vqgan)
    from lwm.convert.open import open_model_files

    assert model is not None
    found = open_model_files(model).vqgan
    if found is None:
        raise UserError(f"{model} has no VQGAN beside it; give one with --vqgan")
    return found


def encode_records(items: Iterable[Pictures], vision: VisionTokenizer) -> Iterator[bytes]:
    """Yields the record of each item, as JSON, with the codes of its frames.

    Frames of several items share a batch, so that all batches but the last are full.
    """
    size, waiting = vision.frames_per_batch, deque[Pictures]()
    # Frames that are not encoded yet, each with the part of its record.
    frames: list[tuple[dict[str, Any], np.ndarray]] = []

    def encode() -> None:
        batch = frames[:size]
        del frames[:size]
        codes = vision.encode_batch(np.stack([pixels for _, pixels in batch]))
        for (part, _), row in zip(batch, codes, strict=True):
            part["vision"] += row.tolist()

    def finished() -> Iterator[bytes]:
        while waiting and all(
            len(part["vision"]) == part["frames"] * vision.tokens_per_frame
            for part in waiting[0].parts
        ):
            yield json.dumps(waiting.popleft().record, separators=(",", ":")).encode()

    for item in items:
        waiting.append(item)
        for part, pixels in zip(item.parts, item.pixels, strict=True):
            frames += [(part, frame) for frame in pixels]
        while len(frames) >= size:
            encode()
        yield from finished()
    while frames:
        encode()
    yield from finished()
