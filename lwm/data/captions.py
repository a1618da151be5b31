"""Captioned images and videos as training examples: text to image, or image to text.

LWM's paper trains on both orders and drops captions for guidance; its rates are not published.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lwm.data.format import Captions
from lwm.errors import UserError
from lwm.tokenizer.lwm_format import LWM_SYSTEM
from lwm.tokenizer.markers import CLOSING, OPENING
from lwm.tokenizer.message import Message, Part, Vision

VisionKind = Literal["image", "video"]

DRAW: dict[VisionKind, str] = {
    "image": "Generate an image of {caption}",
    "video": "Generate a video of {caption}",
}
"""Prompts for generation, in the words of LWM's scripts."""
ASK: dict[VisionKind, str] = {
    "image": "What is shown in this image?",
    "video": "What is shown in this video?",
}

PHRASES = 2 * (
    f"{LWM_SYSTEM} USER: ASSISTANT:",
    OPENING,
    CLOSING,
    *(text.format(caption="") for text in DRAW.values()),
    *ASK.values(),
)
"""Texts around every image; each twice, since a tokenizer merges pairs that occur twice."""


def share(config: Captions, number: int, variant: int) -> float:
    """Returns a number in [0, 1); those of the variants of a record are evenly spaced."""
    return (random.Random(number).random() + variant / config.variants) % 1


def compose(
    record: Mapping[str, Any], vision: Vision, config: Captions, share: float
) -> Sequence[Message] | Sequence[Part]:
    """Returns a conversation, or the parts of a document if the caption is dropped or chat is off.

    The question and answer of a record are used as they are; other records need a caption.

    Args:
        share: Position in [0, 1) among all examples: first those that describe the image, then
            those that generate it, last those without a caption.

    Raises:
        UserError: The text is missing.
    """
    if record.get("question") is not None:
        asked = _text(record, "question"), vision
        return Message("user", asked), Message("assistant", (_text(record, "answer"),))
    caption = _text(record, config.key)
    describes = share < config.vision_first
    if not describes and share >= 1 - (1 - config.vision_first) * config.dropped:
        return (vision,)
    if not config.chat:
        return (vision, caption) if describes else (caption, vision)
    if describes:
        return Message("user", (ASK[vision.kind], vision)), Message("assistant", (caption,))
    return request(caption, vision.kind), Message("assistant", (vision,))


def request(caption: str, kind: VisionKind) -> Message:
    """Returns the user's request for an image or a video."""
    return Message("user", (DRAW[kind].format(caption=caption),))


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        keys = ", ".join(map(repr, record))
        raise UserError(f"key {key!r} should hold a text beside 'vision'; it has {keys}")
    return value
