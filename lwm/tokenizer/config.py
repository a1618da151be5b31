"""The JSON files beside a Hugging Face tokenizer: special tokens, stop ids and chat template."""

import functools
import json
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import require_bounded


class TokenizerConfig:
    """The configuration files of a folder; those that are missing are empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.main = _read(folder / "tokenizer_config.json")
        self.generation = _read(folder / "generation_config.json")
        self._specials = _read(folder / "special_tokens_map.json")
        self._extra = _read(folder / "added_tokens.json")

    @functools.cached_property
    def _model(self) -> dict[str, Any]:
        return _read(self.folder / "config.json")

    @property
    def added(self) -> dict[str, int]:
        """The tokens added to the vocabulary, with their ids."""
        listed = self.main.get("added_tokens_decoder", {})
        return self._extra | {entry["content"]: int(i) for i, entry in listed.items()}

    def token(self, name: str, default: str | None = None) -> str | None:
        """Returns the text of e.g. `bos_token`, which may be wrapped in an object, or null."""
        value = self.main.get(name, self._specials.get(name, default))
        return value.get("content") if isinstance(value, dict) else value

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
        is_llama = self._model.get("model_type") == "llama"
        return self._model.get("vocab_size") if is_llama else None

    @property
    def chat_template(self) -> str | None:
        """The chat template, from whichever file holds it."""
        jinja = self.folder / "chat_template.jinja"
        if jinja.is_file():
            require_bounded(jinja)
            return jinja.read_text(encoding="utf-8")
        wrapped = self.folder / "chat_template.json"
        template = self.main.get("chat_template", _read(wrapped).get("chat_template"))
        if isinstance(template, list):  # several, by name
            named = {entry["name"]: entry["template"] for entry in template}
            return named.get("default", next(iter(named.values())) if len(named) == 1 else None)
        return template


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        require_bounded(file)
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is corrupted: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} is corrupted: it should hold one JSON object")
    return found
