"""Chat templates: conversations to ids, in the model's own format or in LWM's.

Messages of users are plain text: the name of a special token in a message never becomes that token,
whatever the template does with the message; nor does that of another added token that the template
writes. Images and videos have the same markers in every format; text around them is tokenized as
around a special token.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int

from lwm.errors import UserError
from lwm.tokenizer.jinja import render
from lwm.tokenizer.lwm_format import LWM_SYSTEM, LWM_TEMPLATE
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.message import Message, Part, Vision
from lwm.tokenizer.tokenizer import Tokenizer

# Breaks the name of a special token in a message, so that it is not recognised in the rendered
# text, while the template may still strip or search the message. Unicode guarantees that no text
# uses this character.
_BREAK = "\ufdd1"
# Such as "\ufdd212\ufdd3": the place of image or video 12 in the rendered text.
_SHOWN = re.compile("\ufdd2([0-9]+)\ufdd3")
_RESERVED = re.compile("[\ufdd1-\ufdd3]")

MessageLike = Message | Mapping[str, Any]
"""A message, or its JSON form."""


def render_chat(
    messages: Sequence[MessageLike],
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    marks: VisionMarkers | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """Returns the ids of a conversation, up to the assistant's next answer.

    Args:
        template: "lwm", Jinja source, or None for the model's own (LWM's if it has none).
        add_generation_prompt: End with the prompt for an answer of the assistant.
        marks: The ids around images and videos, if the model reads vision.
        tools: JSON schemas of the functions that the assistant may call.
        variables: Other variables of the template, such as `enable_thinking` or `documents`; values
            of JSON, or others that can be pickled.

    Raises:
        UserError: There is no message, the template fails or does not write what is given, or
            there is an image and the model reads no vision.
    """
    tokenizer = tokenizer.under(template)
    said = [Message.of(message) for message in messages]
    parts = chat_parts(
        said,
        tokenizer,
        template=template,
        add_generation_prompt=add_generation_prompt,
        variables={**variables, "tools": tools} if tools else variables,
    )
    ids = np.asarray(tokenizer.encode_parts(parts), np.int32)
    return insert_visions(ids, said, marks)[0].tolist()


def chat_parts(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> list[str | int]:
    """Returns a conversation as text and ids; image or video n, from 0, is the id -1 - n.

    Args:
        messages: The conversation.
        tokenizer: That of the template, see `Tokenizer.under`; it is to encode the parts, too.
        template: See `render_chat`.
        add_generation_prompt: See `render_chat`.
        variables: See `render_chat`; among them `tools`.

    Raises:
        UserError: See `render_chat`.
    """
    if not messages:
        raise UserError("the conversation is empty: give at least one message")
    template = template or tokenizer.chat_template or LWM_TEMPLATE
    if template == LWM_TEMPLATE:
        _refuse_unread([("", key) for key in variables])
        _refuse_unread((message.role, key) for message in messages for key in message.extra)
        said = _lwm_parts(messages, tokenizer, add_generation_prompt)
        split = ([part] if isinstance(part, int) else tokenizer.split_markup(part) for part in said)
        return [piece for part in split for piece in part]
    if "{" not in template:
        raise UserError(f"unknown chat template {template!r}: give 'lwm' or Jinja source")
    text = _render(messages, tokenizer, template, add_generation_prompt, variables)
    parts = _parts(text, tokenizer)
    shown = [part for part in parts if isinstance(part, int) and part < 0]
    if shown != [-1 - n for n in range(sum(len(message.visions) for message in messages))]:
        raise UserError("the chat template does not write each image once, in order; use 'lwm'")
    return parts


def _parts(text: str, tokenizer: Tokenizer) -> list[str | int]:
    """Splits rendered text at control tokens and images."""
    parts: list[str | int] = []
    for part in tokenizer.split(text):
        if isinstance(part, int):
            parts.append(part)
            continue
        texts = _SHOWN.split(part.replace(_BREAK, ""))
        pairs = enumerate(texts)
        parts += [-1 - int(piece) if place % 2 else piece for place, piece in pairs if piece]
    return parts


def _refuse_unread(left: Iterable[tuple[str, str]]) -> None:
    """Refuses the keys, each of a message of a role, or of none, that a template leaves out."""
    for role, key in left:
        # Templates often identify the answer of a tool by its place alone.
        if key == "tool_call_id" or (role, key) == ("tool", "name"):
            continue
        which = f"key {key!r} of a message of the {role}" if role else repr(key)
        raise UserError(
            f"the chat template does not write {which}; give a template that does, or remove it"
        )


def insert_visions(
    ids: Int[np.ndarray, " n"], messages: Sequence[Message], marks: VisionMarkers | None
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
    """Replaces each id -1 - n by the ids of image or video n.

    Returns:
        The ids, and the number of them that each given id became.

    Raises:
        UserError: The model reads no vision, or a code is not in its codebook.
    """
    visions = [vision for message in messages for vision in message.visions]
    counts = np.ones(len(ids), np.int64)
    if not visions:
        return ids, counts
    if marks is None:
        raise UserError("a message holds an image or a video, but the model reads no vision")
    runs: list[np.ndarray] = []
    end = 0
    for place in np.flatnonzero(ids < 0):
        wrapped = marks.wrap(visions[-1 - ids[place]].codes)
        runs += [ids[end:place], wrapped]
        counts[place], end = len(wrapped), place + 1
    return np.concatenate([*runs, ids[end:]]), counts


def _lwm_parts(
    messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool
) -> list[str | int]:
    """Returns LWM's format, in which `</s>` ends each answer.

    LWM published the prompt of one turn only. Its loader ends an example with `</s>` and encodes
    the text after it separately, as in Vicuna's format; so does this function. As in LWM's script
    for chats about video, the question is on a line of its own before the image or video.
    """
    written: list[Part | int | None] = [tokenizer.bos_id]
    turns = list(messages)
    system = _only_text(turns.pop(0)) if turns[0].role == "system" else LWM_SYSTEM
    written.append(f"{system} " if system else "")
    for turn in turns:
        if turn.role not in ("user", "assistant"):
            raise UserError(f"LWM's format has no {turn.role} message after the first")
        if turn.role == "user":
            written += ["USER: ", *_laid_out(turn), " "]
        else:
            written += ["ASSISTANT: ", *_laid_out(turn), tokenizer.eos_id]
    if add_generation_prompt:
        written.append("ASSISTANT:")
    return _joined(written)


def _joined(written: Sequence[Part | int | None]) -> list[str | int]:
    """Joins adjacent texts, strips spaces before images and at the end, and numbers images."""
    parts: list[str | int] = []
    text, count = "", 0
    for part in written:
        if isinstance(part, str):
            text += part
        elif isinstance(part, Vision):
            count += 1
            parts += [text.rstrip(" "), -count]
            text = ""
        elif part is not None:
            parts += [text, part]
            text = ""
    return [part for part in [*parts, text.rstrip(" ")] if part != ""]


def _laid_out(turn: Message) -> Iterator[Part]:
    """Yields the parts of a turn; a user's question ends with a line break before an image.

    Adjacent texts are joined: the name of a special token split in two would not be found.
    """
    text = ""
    for part in turn.parts:
        if isinstance(part, str):
            text += part
            continue
        if turn.role == "user" and text and not text[-1].isspace():
            text += "\n"
        if text:
            yield text
        yield part
        text = ""
    if text:
        yield text


def _only_text(message: Message) -> str:
    if message.visions:
        raise UserError(f"a {message.role} message holds text only in LWM's format")
    return message.text


def _render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: str,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    backend = tokenizer.backend
    shown, count = [], 0
    for message in messages:
        # The developer and the model may write markup such as <think>, others may not.
        trusted = message.role in ("system", "assistant")
        pattern = backend.control_pattern if trusted else backend.reserved_pattern
        content = "" if message.parts or not message.extra else None
        for part in _laid_out(message):
            if isinstance(part, Vision):
                content = f"{content or ''}\ufdd2{count}\ufdd3"
                count += 1
            else:
                content = (content or "") + _broken(part, pattern)
        extra = _broken(message.extra, pattern)
        shown.append({**extra, "role": message.role, "content": content})
    rendered = render(
        template,
        shown,
        {
            **_broken(variables, backend.control_pattern),
            **tokenizer.template_names,
            "add_generation_prompt": add_generation_prompt,
        },
        given=variables,
    )
    _refuse_unread(("", key) for key in rendered.unused)
    for message, unread in zip(messages, rendered.unread, strict=True):
        _refuse_unread((message.role, key) for key in message.extra if key in unread)
    return rendered.text


def _broken(value: Any, pattern: re.Pattern[str] | None) -> Any:
    """Breaks the names of control tokens in texts, also in those of lists and objects."""
    if isinstance(value, Mapping):
        return {_broken(key, pattern): _broken(inner, pattern) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_broken(inner, pattern) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _broken(value.tolist(), pattern)
    if not isinstance(value, str):
        return value
    value = _RESERVED.sub("\ufffd", value)
    return pattern.sub(lambda match: _BREAK.join(match[0]), value) if pattern else value
