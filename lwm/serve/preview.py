"""`/v1/media/preview`: an image or a video as the model sees it, before it is asked about it."""

from typing import Any

import numpy as np

from lwm.serve.messages import place_of, read_media, require_room
from lwm.serve.pictures import IMAGE_TYPES, data_address, encoded
from lwm.serve.running import Caller
from lwm.serve.schema import PreviewRequest
from lwm.serve.service import Service
from lwm.tokenizer.message import Vision


async def preview(service: Service, body: PreviewRequest, caller: Caller) -> dict[str, Any]:
    """Returns the tokens of an image or a video, and frames decoded from its codes.

    It is read as a chat reads it, which then finds its codes in the cache.

    Raises:
        ApiError: It cannot be read, or exceeds the limits or the context.
    """
    vision = await read_media(service, body.part, "part", salt=caller.salt)
    tokens, count = service.model.marks.size(*vision.codes.shape), len(vision.codes)
    require_room(service, tokens, place_of(body.part, "part"))
    shown = _spread(count, body.frames) if service.draws else []
    addresses = await service.on_thread(_decoded, service, vision, shown, media=True)
    times = vision.times if vision.is_video else None
    return {
        "kind": vision.kind,
        "tokens": tokens,
        "num_frames": count,
        "times": None if times is None else [round(float(time), 6) for time in times],
        "shown": shown,
        "frames": [{"url": address} for address in addresses],
    }


def _spread(count: int, most: int) -> list[int]:
    """Returns the numbers of evenly spaced frames, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _decoded(service: Service, vision: Vision, shown: list[int]) -> list[str]:
    """Returns frames as PNG files, in `data:` addresses."""
    if not shown:
        return []
    codes = vision.codes[shown]
    frames = [
        Vision(codes=codes[[number]], is_video=False, pixels=pixels[None])
        for number, pixels in enumerate(service.model.decode_frames(codes))
    ]
    return [data_address(encoded(frame, "png"), IMAGE_TYPES["png"]) for frame in frames]
