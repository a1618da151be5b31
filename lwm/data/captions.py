"""Images and videos with captions, as what a model is to learn: to draw them, or to tell of them.

LWM's paper trains on both orders and drops captions for guidance; its rates are not published.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lwm.data.format import Captions
from lwm.errors import UserError
from lwm.tokenizer.markers import CLOSING, OPENING
from lwm.tokenizer.message import Message, Part, Vision
from lwm.tokenizer.template import LWM_SYSTEM

VisionKind = Literal["image", "video"]

DRAW: dict[VisionKind, str] = {
    "image": "Generate an image of {caption}",
    "video": "Generate a video of {caption}",
}
"""How a picture is asked for: the words of LWM's scripts."""
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
"""What stands around every picture; twice, as a tokenizer learns what it has seen twice."""


def share(config: Captions, line: int, variant: int) -> float:
    """Returns a number in [0, 1): of the variants of a record they are spread evenly."""
    return (random.Random(line).random() + variant / config.variants) % 1


def said(
    record: Mapping[str, Any], vision: Vision, config: Captions, share: float
) -> Sequence[Message] | Sequence[Part]:
    """Returns a conversation, or a document's parts where the picture is all, or no chat is asked.

    A record with `question` and `answer` asks that; another has a caption.

    Args:
        record: What is known of the picture.
        vision: The picture.
        config: How they become an example.
        share: From 0 up to 1, of all examples: the first tell what is seen, then the picture is
            drawn, and the last have no caption.

    Raises:
        UserError: The text is missing.
    """
    if record.get("question") is not None:
        asked = _text(record, "question"), vision
        return Message("user", asked), Message("assistant", (_text(record, "answer"),))
    caption = _text(record, config.key)
    tells = share < config.vision_first
    if not tells and share >= 1 - (1 - config.vision_first) * config.dropped:
        return (vision,)
    if not config.chat:
        return (vision, caption) if tells else (caption, vision)
    if tells:
        return Message("user", (ASK[vision.kind], vision)), Message("assistant", (caption,))
    return request(caption, vision.kind), Message("assistant", (vision,))


def request(caption: str, kind: VisionKind) -> Message:
    """Returns what a user says for an image or a video."""
    return Message("user", (DRAW[kind].format(caption=caption),))


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        keys = ", ".join(map(repr, record))
        raise UserError(f"key {key!r} should hold a text beside 'vision'; it has {keys}")
    return value
