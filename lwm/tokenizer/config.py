"""The JSON files beside a Hugging Face tokenizer: special tokens, stop ids and chat template."""

import functools
import reprlib
from pathlib import Path
from typing import Any, TypeGuard

from lwm.errors import UserError
from lwm.files import parse_json, reading
from lwm.limits import require_bounded

_MOST_ID = 2**31


class TokenizerConfig:
    """The configuration files of a folder; those that are missing are empty.

    All properties raise UserError for a value of another type than transformers reads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "tokenizer_config.json"
        self.main = _read(self._file)
        self.generation = _read(folder / "generation_config.json")
        self._specials = _read(folder / "special_tokens_map.json")
        self._extra = _read(folder / "added_tokens.json")

    @functools.cached_property
    def _model(self) -> dict[str, Any]:
        return _read(self.folder / "config.json")

    @property
    def added(self) -> dict[str, int]:
        """The tokens added to the vocabulary, with their ids."""
        listed = self.main.get("added_tokens_decoder") or {}
        if not isinstance(listed, dict):
            raise self._wrong("added_tokens_decoder", listed, "an object of tokens by id")
        found = dict(self._extra)
        for number, entry in listed.items():
            content = entry.get("content") if isinstance(entry, dict) else None
            if not (_is_text(content) and number.isascii() and number.isdecimal()):
                raise self._wrong("added_tokens_decoder", {number: entry}, "a token by its id")
            found[content] = int(number[:20])
        for name, number in found.items():
            if not (_is_text(name) and type(number) is int and 0 <= number < _MOST_ID):
                raise UserError(
                    f"{self.folder}: the added token {reprlib.repr(name)} has the id "
                    f"{reprlib.repr(number)}, no id of a vocabulary; fetch the files again"
                )
        return found

    @property
    def add_bos(self) -> bool | None:
        """True if texts start with `bos_token`; None if the files do not say."""
        value = self.main.get("add_bos_token")
        if not isinstance(value, bool | None):
            raise self._wrong("add_bos_token", value, "true, false or null")
        return value

    def token(self, name: str, default: str | None = None) -> str | None:
        """Returns the text of e.g. `bos_token`, which may be wrapped in an object, or null."""
        value = self.main.get(name, self._specials.get(name, default))
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and not _is_text(text):
            raise self._wrong(name, value, "the text of a token")
        return text

    @property
    def eos_ids(self) -> list[Any]:
        """The ids that end a text: of `generation_config.json`, else of the model's config."""
        found = self.generation.get("eos_token_id")
        if found is None:
            text = self._model.get("text_config")
            found = self._model.get("eos_token_id")
            if found is None and isinstance(text, dict):  # of a model of several modalities
                found = text.get("eos_token_id")
        ids = found if isinstance(found, list) else [found]
        return [i for i in ids if i not in (None, -1)]  # -1 stands for none

    @property
    def llama_vocab_size(self) -> int | None:
        """The number of ids of the model, if it is a Llama."""
        size = self._model.get("vocab_size") if self._model.get("model_type") == "llama" else None
        return size if type(size) is int else None

    @property
    def chat_template(self) -> str | None:
        """The chat template, from whichever file holds it."""
        jinja = self.folder / "chat_template.jinja"
        if jinja.is_file():
            with reading(jinja):
                require_bounded(jinja)
                return jinja.read_text(encoding="utf-8")
        wrapped = self.folder / "chat_template.json"
        template = self.main.get("chat_template", _read(wrapped).get("chat_template"))
        if isinstance(template, list):  # several, by name
            if not all(isinstance(entry, dict) for entry in template):
                raise self._wrong("chat_template", template, "a text, or texts by name")
            template = {str(entry.get("name")): entry.get("template") for entry in template}
        named = template if isinstance(template, dict) else {"default": template}
        if not all(text is None or _is_text(text) for text in named.values()):
            raise self._wrong("chat_template", template, "a text, or texts by name")
        return named.get("default", next(iter(named.values())) if len(named) == 1 else None)

    def _wrong(self, key: str, value: Any, expected: str) -> UserError:
        return UserError(
            f"{self._file}: {key} is {reprlib.repr(value)}, not {expected}; fetch the file again"
        )


def _is_text(value: Any) -> TypeGuard[str]:
    """Returns whether a value is a text; JSON may hold halves of surrogate pairs, which are not."""
    if not isinstance(value, str):
        return False
    return value.isascii() or value.encode(errors="ignore").decode() == value


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    with reading(file):
        require_bounded(file)
        text = file.read_text(encoding="utf-8")
    try:
        found = parse_json(text)
    except ValueError as error:
        raise UserError(f"{file} is corrupted: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} is corrupted: it should hold one JSON object")
    return found
