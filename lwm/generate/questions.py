"""Reads questions as callers write them: texts, images, videos, and messages in OpenAI's JSON."""

import reprlib
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lwm.errors import UserError
from lwm.media.memory import is_in_memory
from lwm.tokenizer.message import Message, Part, Vision, part_of

Question = Any
"""A text; parts, which are texts, images and videos; or messages, the last one a question.

Parts: a text, a result of `see`, or anything that `see` takes but a path as a plain text, or
OpenAI's and Hugging Face's parts with a `type`. Messages: `Message`, or objects with `role` and
`content`.
"""


class QuestionReader:
    """Turns questions into messages; images and videos are encoded by the model."""

    def __init__(self, see: Callable[..., Vision]):
        """Takes the function that encodes an image or a video."""
        self._see = see

    def messages(self, question: Question) -> list[Message]:
        """Returns the turns up to the question.

        Raises:
            UserError: It is empty, a part is no text, image or video, or a file cannot be read.
        """
        is_one = isinstance(question, str | bytes | Path | Vision | Mapping | Message)
        items = [question] if is_one or hasattr(question, "__array__") else question
        if not isinstance(items, Sequence):
            items = [question] if is_in_memory(question) else None
        if items is None:
            raise UserError(
                f"a question is a text, a list of texts and images, or messages, not "
                f"{reprlib.repr(question)}"
            )
        if not items:
            raise UserError("the question is empty; give a text, an image or a video")
        are_messages = {_is_message(each) for each in items}
        if are_messages == {False}:
            return [Message("user", tuple(map(self.part, items)))]
        if False in are_messages:
            raise UserError("messages and parts of one question are mixed; give a list of either")
        return [self._message(each) for each in items]

    def _message(self, value: Any) -> Message:
        if isinstance(value, Message):
            return value
        made: dict[str, Any] = dict(value)
        # As OpenAI's newer models name it.
        made["role"] = "system" if made["role"] == "developer" else made["role"]
        if isinstance(content := made.get("content"), list | tuple):
            parts = [self.part(each) for each in content]
            made["content"] = [_as_json(each) for each in parts]
        return Message.of(made)

    def part(self, value: Any) -> Part:
        """Returns a part of a question.

        Raises:
            UserError: It is no text, image or video, or cannot be read.
        """
        if isinstance(value, str | Vision):
            return value
        if isinstance(value, Mapping):
            return self._typed(value)
        if isinstance(value, Path | bytes) or is_in_memory(value):
            return self._see(value)
        raise UserError(
            "a part of a question is a text, an image or a video (a result of see, a path, bytes, "
            f"an image of Pillow or an array), not {reprlib.repr(value)}"
        )

    def _typed(self, value: Mapping[str, Any]) -> Part:
        """Reads a part in JSON form."""
        kind = str(value.get("type", ""))
        name = kind.removesuffix("_url")
        if name not in ("image", "video") or value.get("vision") is not None:
            return part_of(value)
        given = [value.get(key) for key in (kind, name, "path", "url")]
        source = next((each for each in given if each is not None), None)
        if isinstance(source, Mapping):
            source = source.get("url")
        if source is None:
            raise UserError(f"a part of type {kind} has no {kind!r}: give a path or data: address")
        options = {"fps": value.get("fps")}
        if (frames := value.get("num_frames")) is not None:
            options["max_frames"] = frames
        return self._see(_addressed(source) if isinstance(source, str) else source, **options)


def texts_of(value: Any) -> tuple[str, ...]:
    """Returns a text, or a sequence of texts, as a tuple.

    Raises:
        UserError: It is neither.
    """
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(each, str) for each in texts):
        raise UserError(f"give a text or a list of texts, not {reprlib.repr(value)}")
    return tuple(texts)


def _is_message(value: Any) -> bool:
    return isinstance(value, Message) or (isinstance(value, Mapping) and "role" in value)


def _as_json(part: Part) -> Part | dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else part


def _addressed(address: str) -> Path | bytes:
    """Returns the path or the content that an address stands for.

    Raises:
        UserError: It is an address of the web, or malformed.
    """
    scheme = address.partition(":")[0].lower()
    if scheme in ("http", "https"):
        raise UserError(f"{reprlib.repr(address)} is on the web; download it and give its path")
    if scheme == "file":
        return Path(unquote(urlsplit(address).path))
    if scheme != "data":
        return Path(address)
    try:
        with urllib.request.urlopen(address) as response:  # reads the address itself, nothing else
            return response.read()
    except (ValueError, urllib.error.URLError):
        raise UserError("the data: address is malformed; give data:image/png;base64,...") from None
