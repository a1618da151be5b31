"""Chat templates: conversations to ids, in the model's own format or in LWM's.

Messages of users are plain text: the name of a special token in a message never becomes that token,
whatever the template does with the message. Images and videos have the same markers in every
format; text around them is tokenized as around a special token.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from jaxtyping import Int

from lwm.errors import UserError
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.message import Message, Part, Vision
from lwm.tokenizer.tokenizer import Tokenizer

LWM_TEMPLATE = "lwm"
LWM_SYSTEM = "You are a helpful assistant."

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
) -> list[int]:
    """Returns the ids of a conversation, up to the assistant's next answer.

    Args:
        template: "lwm", Jinja source, or None for the model's own (LWM's if it has none).
        add_generation_prompt: End with the prompt for an answer of the assistant.
        marks: The ids around images and videos, if the model reads vision.

    Raises:
        UserError: There is no message, the template fails, or there is an image and the model
            reads no vision.
    """
    said = [Message.of(message) for message in messages]
    parts = chat_parts(
        said, tokenizer, template=template, add_generation_prompt=add_generation_prompt
    )
    ids = np.asarray(tokenizer.encode_parts(parts), np.int32)
    return insert_visions(ids, said, marks)[0].tolist()


def chat_parts(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
) -> list[str | int]:
    """Returns a conversation as text and ids; image or video n, from 0, is the id -1 - n.

    Raises:
        UserError: See `render_chat`.
    """
    if not messages:
        raise UserError("the conversation is empty: give at least one message")
    template = template or tokenizer.chat_template or LWM_TEMPLATE
    if template == LWM_TEMPLATE:
        return _lwm_parts(messages, tokenizer, add_generation_prompt)
    if "{" not in template:
        raise UserError(f"unknown chat template {template!r}: give 'lwm' or Jinja source")
    text = _render(messages, tokenizer, template, add_generation_prompt)
    parts: list[str | int] = []
    for part in tokenizer.split(text):
        if isinstance(part, int):
            parts.append(part)
            continue
        texts = _SHOWN.split(part.replace(_BREAK, ""))
        pairs = enumerate(texts)
        parts += [-1 - int(piece) if place % 2 else piece for place, piece in pairs if piece]
    shown = [part for part in parts if isinstance(part, int) and part < 0]
    if shown != [-1 - n for n in range(sum(len(message.visions) for message in messages))]:
        raise UserError("the chat template does not write each image once, in order; use 'lwm'")
    return parts


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
) -> str:
    names = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    named = {name: tokenizer.text_of(i) for name, i in names.items() if i is not None}
    shown, count = [], 0
    for message in messages:
        content = ""
        for part in _laid_out(message):
            if isinstance(part, Vision):
                content += f"\ufdd2{count}\ufdd3"
                count += 1
            else:
                content += _broken(part, tokenizer)
        shown.append({"role": message.role, "content": content})
    compiled = _compile(template)
    try:
        return compiled.render(
            messages=shown,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            pad_token=tokenizer.text_of(tokenizer.pad_id),
            **named,
        )
    except Exception as error:  # a template is a program of the model's author
        raise UserError(f"the chat template cannot render this conversation: {error}") from None


def _broken(content: str, tokenizer: Tokenizer) -> str:
    content = _RESERVED.sub("\ufffd", content)
    pattern = tokenizer.backend.special_pattern
    if pattern is None:
        return content
    return pattern.sub(lambda match: _BREAK.join(match[0]), content)


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
    )
    environment.filters["tojson"] = _tojson
    offered = {"raise_exception": _raise, "strftime_now": _now}
    try:
        return environment.from_string(template, globals=offered)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is not valid Jinja: {error}") from None


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any) -> str:
    """Writes plain JSON; Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)


def _raise(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _generation() -> type:
    """Returns the extension for `{% generation %}`, which marks answers for training."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (how Jinja declares them)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation
