"""Reads records of conversations, in the forms that data sets have.

    {"messages": [{"role": "user", "content": ...}, ...], "tools": [...], "system": ...}
    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}

The second is ShareGPT's. What these forms say besides goes through the chat template, or is refused
by its name.
"""

import itertools
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lwm.errors import UserError
from lwm.tokenizer.message import Message, json_of

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_WEIGHTS = ("weight", "train", "loss_mask")
# What `chat_template_kwargs` cannot set.
_OWN = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "pad_token")


class Conversation(NamedTuple):
    """A conversation of a data set."""

    messages: list[Message]
    variables: dict[str, Any]
    """Variables of the chat template, such as `tools`."""


def read_conversation(
    record: Mapping[str, Any], *, tokens_per_frame: int | None = None
) -> Conversation:
    """Reads the messages of a record, and what is beside them.

    Raises:
        UserError: A message is malformed, or the record says what cannot be trained on.
    """
    key = "conversations" if "messages" not in record and "conversations" in record else "messages"
    said = record.get(key)
    if said is None:
        keys = ", ".join(map(repr, record)) or "no keys"
        raise UserError(f"key {key!r} is missing; it has {keys}")
    if not isinstance(said, list) or not all(isinstance(each, Mapping) for each in said):
        raise UserError(f"key {key!r} should be a list of objects with role and content")
    messages = [Message.of(_plain(each), tokens_per_frame=tokens_per_frame) for each in said]
    # Arrow's lists are arrays, which have no truth of their own.
    beside = {
        name: value.tolist() if isinstance(value := record.get(name), np.ndarray) else value
        for name in (*_MEDIA, *_WEIGHTS)
    }
    for media in _MEDIA:
        if beside[media]:
            raise UserError(
                f"key {media!r} beside {key!r} would be left out; `lwm tokenize` makes codes of "
                "images and videos, which go among the parts of a message's content"
            )
    for key in _WEIGHTS:
        if (value := beside[key]) not in (None, 1):
            raise UserError(
                f"key {key!r} is {reprlib.repr(value)}: records have equal weights; leave the "
                "record or the key out, or give `weight` 0 to the messages not to train on"
            )
    return Conversation(with_system(messages, record), _variables(record))


def with_system(messages: Sequence[Message], record: Mapping[str, Any]) -> list[Message]:
    """Puts a record's own `system` before its messages.

    Raises:
        UserError: The messages have another system message.
    """
    for key in ("system", "system_prompt"):
        if not record.get(key):
            continue
        first = Message.of({"role": "system", "content": record[key]})
        if not messages or messages[0].role != "system":
            messages = [first, *messages]
        elif messages[0].text != first.text:
            raise UserError(f"key {key!r} is beside another system message; keep one of them")
    return list(messages)


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a message with `role` and `content`."""
    if "role" not in message and "from" in message:
        rest = {key: value for key, value in message.items() if key not in ("from", "value")}
        message = {"role": message["from"], "content": message.get("value"), **rest}
        if message["role"] not in _ROLES:
            raise UserError(
                f"a message is 'from' {message['role']!r}, which is none of {', '.join(_ROLES)}"
            )
        return {**message, "role": _ROLES[message["role"]]}
    # OpenAI's former name.
    return {**message, "role": "tool"} if message.get("role") == "function" else message


def _variables(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of the template that a record sets."""
    found = {key: _list(record, key) for key in ("tools", "functions", "documents")}
    functions = [{"type": "function", "function": each} for each in found.pop("functions")]
    found["tools"] = list(itertools.chain(found["tools"], functions))
    settings = record.get("chat_template_kwargs") or {}
    if not isinstance(settings, Mapping) or set(settings) & set(_OWN):
        raise UserError(
            "key 'chat_template_kwargs' should be an object of variables of the template, other "
            f"than {', '.join(_OWN)}"
        )
    set_ = {key: value for key, value in settings.items() if value is not None}
    return {key: value for key, value in found.items() if value} | set_


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    if isinstance(value, str) and value.strip():  # Arrow holds no lists of unlike objects
        value = json_of(value, key)
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise UserError(f"key {key!r} should be a list of objects")
    return value
