"""Conversations to ids, in the model's own format or in LWM's.

What a user says is text and never more: a special token typed into a message stays the letters it
is made of, whatever the template does with the message.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lwm.data.tokenizer import Tokenizer
from lwm.errors import UserError

LWM = "lwm"
LWM_SYSTEM = "You are a helpful assistant."

# Put inside a special token's name that a user typed, it keeps the name from being recognised in
# the rendered text, while the template may still strip or search the message. Unicode guarantees
# that no text uses it.
_BREAK = "\ufdd1"
_ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, Any]


def render_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Returns the ids of a conversation, up to where the assistant is to answer.

    `template` is "lwm", Jinja source, or None for the model's own (LWM's where it has none).
    """
    _check(messages)
    template = template or tokenizer.chat_template or LWM
    if template == LWM:
        return tokenizer.encode_parts(_lwm_parts(messages, tokenizer, add_generation_prompt))
    if "{" not in template:
        raise UserError(f"unknown chat template {template!r}: give 'lwm' or Jinja source")
    text = _render(messages, tokenizer, template, add_generation_prompt)
    parts = tokenizer.split(text)
    return tokenizer.encode_parts(
        [part.replace(_BREAK, "") if isinstance(part, str) else part for part in parts]
    )


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise UserError("the conversation is empty: give at least one message")
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise UserError(f"unknown role {role!r} in a message; roles are {', '.join(_ROLES)}")
        if not isinstance(content, str):
            raise UserError(f"the content of a {role} message should be text, not {content!r}")


def _lwm_parts(
    messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool
) -> list[str | int]:
    """Returns LWM's format, with each answer ended by `</s>`.

    LWM published the prompt of one turn only. Its loader ends an example with `</s>` and encodes
    what follows one as a text of its own, which is Vicuna's format; that is what is done here.
    """
    parts: list[str | int] = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    turns = list(messages)
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else LWM_SYSTEM
    text = f"{system} " if system else ""
    for turn in turns:
        if turn["role"] == "user":
            text += f"USER: {turn['content']} "
        elif turn["role"] == "assistant":
            parts.append(f"{text}ASSISTANT: {turn['content']}")
            parts += [] if tokenizer.eos_id is None else [tokenizer.eos_id]
            text = ""
        else:
            raise UserError(f"LWM's format has no {turn['role']} message after the first")
    if add_generation_prompt:
        text += "ASSISTANT:"
    return [part for part in [*parts, text.rstrip(" ")] if part != ""]


def _render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: str,
    add_generation_prompt: bool,
) -> str:
    names = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    named = {name: tokenizer.text_of(i) for name, i in names.items() if i is not None}
    shown = [{"role": m["role"], "content": _broken(m["content"], tokenizer)} for m in messages]
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
    content = content.replace(_BREAK, "\ufffd")
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
    """Write JSON as it is: Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)


def _raise(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _generation() -> type:
    """Returns the extension for `{% generation %}`, with which templates mark what is learnt."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (how Jinja declares them)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation
