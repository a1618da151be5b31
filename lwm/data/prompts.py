"""Prompts and chats from a file: what a model is to continue or to answer."""

from pathlib import Path
from typing import Any, NamedTuple

from lwm.data.conversation import read_conversation
from lwm.errors import UserError
from lwm.files import parse_json, require_unpacked
from lwm.limits import require_bounded
from lwm.text import well_formed
from lwm.tokenizer.message import Message

_JSON_LINES = (".jsonl", ".ndjson", ".json")


class Prompt(NamedTuple):
    """A text to continue, or a chat to answer."""

    content: str | list[Message]
    variables: dict[str, Any]
    """Variables of the chat template, such as `tools`."""
    fields: dict[str, Any]
    """All fields of its line, which the answer keeps."""
    place: str
    """Where it is from, for messages."""

    @classmethod
    def of(cls, text: str, place: str) -> "Prompt":
        """Takes a text."""
        text = well_formed(text)
        return cls(text, {}, {"prompt": text}, place)


def read_prompts(path: Path) -> list[Prompt]:
    """Reads one text per line, or the prompt or the chat of each line of a JSONL file.

    Files of JSON lines end in .jsonl, .ndjson or .json. A line has a text `prompt`, or a chat in
    one of the forms that `read_conversation` reads.

    Raises:
        UserError: The file is missing, compressed or no text, or a line of JSON has neither.
    """
    try:
        with path.open("rb") as packed:
            require_unpacked(path, packed.read(8))
        require_bounded(path)
        # Not `splitlines`: JSON may hold other ends of a line, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts cannot be read from {path}: {error}") from None
    read = _read_json if path.suffix.lower() in _JSON_LINES else Prompt.of
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return [read(line, f"{path}, line {number}") for number, line in numbered]


def _read_json(line: str, place: str) -> Prompt:
    try:
        fields = parse_json(line)
    except ValueError as error:
        raise UserError(f"{place}: no JSON object: {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{place}: no JSON object")
    is_chat = any(fields.get(key) is not None for key in ("messages", "conversations"))
    text = fields.get("prompt")
    if is_chat and text is not None:
        raise UserError(f'{place}: "prompt" beside a chat; leave one of them out')
    if is_chat:
        try:
            chat = read_conversation(fields)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        return Prompt(chat.messages, chat.variables, fields, place)
    if not isinstance(text, str):
        raise UserError(f'{place}: no JSON object with a text "prompt" or a chat "messages"')
    prompt = Prompt.of(text, place)
    return prompt._replace(fields={**fields, **prompt.fields})
