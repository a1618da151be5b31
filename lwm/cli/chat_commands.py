"""Commands of `lwm chat`, which begin with a slash."""

import dataclasses
import difflib
import io
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwm.errors import UserError
from lwm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lwm.tokenizer.message import Message

COMMANDS = {
    "/help": "lists the commands",
    "/image FILE QUESTION": "reads an image; without a question, the next one is about it",
    "/video FILE QUESTION": "reads a video, as /image",
    "/document FILE": "puts a text, HTML or PDF, or a folder of them, before the question",
    "/system TEXT": "says how to answer, from now on; without a text, nothing does",
    "/retry": "asks the last question again",
    "/undo": "removes the last question and its answer",
    "/clear": "forgets the conversation",
    "/tokens": "says how full the context is",
    "/set NAME VALUE": "changes how answers are sampled, as /set temperature 0.2",
    "/save FILE": "writes the conversation as JSON",
    "/load FILE": "goes on with a conversation that /save wrote",
    "/quit": "leaves, as Ctrl-D does",
}
"""Each with what it takes, and what it does."""
_SETTABLE = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens"),
)
NAMES = [usage.split()[0] for usage in COMMANDS]


def require_command(name: str) -> None:
    """Refuses a command that does not exist.

    Raises:
        UserError: The nearest one is suggested.
    """
    if name in NAMES:
        return
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "/help lists them"
    raise UserError(f"there is no command {name}; {hint}")


def file_and_rest(text: str) -> tuple[str, str]:
    """Returns the path at the start of a text, and what follows it.

    The path may be in quotes, or with its spaces escaped, as terminals write files that are dragged
    into them. Without either, and if it names a file as a whole, the text is the path.

    Raises:
        UserError: There is none.
    """
    text = text.strip()
    if not text:
        raise UserError("give a file after the command")
    whole = os.path.expanduser(text)
    if os.path.exists(whole):
        return whole, ""
    stream = io.StringIO(text)
    lexer = shlex.shlex(stream, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        path = lexer.get_token() or ""
    except ValueError:  # a quote that is not closed, perhaps an apostrophe
        path, _, rest = text.partition(" ")
        return os.path.expanduser(path), rest.strip()
    return os.path.expanduser(path), stream.read().strip()


def file_alone(text: str) -> Path:
    """Returns the path that a text is.

    Raises:
        UserError: There is none, or something follows it.
    """
    path, rest = file_and_rest(text)
    if rest:
        raise UserError(f"{rest!r} follows the file; put a name with spaces in quotes")
    return Path(path)


def changed(params: SamplingParams, text: str) -> SamplingParams:
    """Returns sampling parameters with one changed, as `temperature 0.2` names it.

    Raises:
        UserError: There is no such parameter, or it cannot have this value.
    """
    name, _, value = text.strip().partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    now = {one: getattr(params, one) for one in _SETTABLE}
    if name not in now:
        near = difflib.get_close_matches(name, now, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(now)}"
        raise UserError(f"no parameter is called {name!r}; {hint}")
    if name == "stop":
        return dataclasses.replace(params, stop=(value,) if value else ())
    try:
        found = json.loads(value.lower().replace("none", "null"))
        kind = float if isinstance(now[name], float) else int
        number = None if found is None and name == "max_tokens" else kind(found)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{name} is a number, and cannot be {value!r}") from None
    values: dict[str, Any] = {name: number}
    return dataclasses.replace(params, **values)


def saved(system: str | None, messages: "Sequence[Message]") -> bytes:
    """Returns a conversation as JSON, in the form of records to train on."""
    first = [] if system is None else [{"role": "system", "content": system}]
    said = [{"role": one.role, "content": _content(one)} for one in messages]
    values = {"messages": [*first, *said]}
    return (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode(errors="replace")


def _content(message: "Message") -> str | list[dict[str, Any]]:
    """Returns the text of a message, or its parts if there are images or videos."""
    if not message.visions:
        return message.text
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": "video" if part.is_video else "image",
            "vision": part.codes.reshape(-1).tolist(),
            "frames": len(part.codes),
        }
        for part in message.parts
    ]
