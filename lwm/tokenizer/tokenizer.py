"""Text to ids and back, from a Hugging Face folder, a SentencePiece model or a GGUF file.

No method adds a beginning or end of text: the caller adds `bos_id`; `add_bos` is true if the model
was trained with it.
"""

import codecs
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

from lwm.errors import UserError
from lwm.formats.gguf_file import find_gguf, is_gguf
from lwm.tokenizer.backends import FastTokenizer, SentencePiece

# Ends of turns of instruction-tuned models; some configs name only the end of a document.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>")
_LOOKED_FOR = "tokenizer.json, tokenizer.model or one .gguf file"


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer: its library, special ids and chat template."""

    backend: FastTokenizer | SentencePiece = field(repr=False)
    bos_id: int | None
    """The id that starts a document, if there is one."""
    eos_id: int | None
    """The id that ends a document, if there is one."""
    eos_ids: frozenset[int]
    """All ids that stop generation: `eos_id` and the chat's end of turn."""
    pad_id: int
    """The padding id: the model's own if it has it, else its unknown or end id, else 0."""
    add_bos: bool
    """True if the model's own tokenizer starts each text with `bos_id`."""
    chat_template: str | None = field(default=None, repr=False)
    """The model's own chat template, in Jinja."""

    @classmethod
    def open(cls, path: Path) -> "Tokenizer":
        """Reads the tokenizer of a model folder, or one tokenizer or GGUF file."""
        path = Path(path)
        if path.is_file():
            return cls._from_file(path, path.parent)
        if not path.is_dir():
            raise UserError(f"no tokenizer at {path}: there is no such file or folder")
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).is_file():
                return cls._from_file(path / name, path)
        if (gguf := find_gguf(path)) is not None:
            return cls._from_file(gguf, path)
        raise UserError(f"no tokenizer in {path}: looked for {_LOOKED_FOR}")

    @classmethod
    def _from_file(cls, file: Path, folder: Path) -> "Tokenizer":
        if file.suffix == ".gguf" or is_gguf(file):
            from lwm.formats.gguf import read_gguf

            return cls.from_gguf(read_gguf(file).metadata, str(file))
        config = _Config(folder)
        if file.suffix == ".json":
            return _from_config(FastTokenizer.open(file), config)
        return _from_config(SentencePiece.open(file, config.added), config)

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, Any], source: str = "the GGUF tokenizer"
    ) -> "Tokenizer":
        """Builds the tokenizer that a GGUF file's metadata describes."""

        def get(key: str, default: Any = None) -> Any:
            return metadata.get(f"tokenizer.ggml.{key}", default)

        kind, pre = get("model"), get("pre", "default")
        tokens = get("tokens", [])
        kinds = get("token_type", [1] * len(tokens))
        try:
            if kind == "gpt2":
                backend = FastTokenizer.from_tables(tokens, get("merges", []), kinds, pre)
            elif kind == "llama":
                prefix = get("add_space_prefix", True)
                backend = SentencePiece.from_tables(tokens, get("scores", []), kinds, prefix=prefix)
            else:
                raise UserError(f"the GGUF tokenizer is of kind {kind!r}; supported: gpt2, llama")
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the GGUF tokenizer's tables are corrupted: {error}") from None
        return _tokenizer(
            backend,
            source,
            bos_id=get("bos_token_id"),
            eos_id=get("eos_token_id"),
            eos_ids=[get("eot_token_id"), get("eom_token_id")],
            pad_ids=[get("padding_token_id"), get("unknown_token_id")],
            # The defaults of llama.cpp, for which these files are written.
            add_bos=get("add_bos_token", kind == "llama" or pre in ("llama-bpe", "llama3")),
            chat_template=metadata.get("tokenizer.chat_template"),
        )

    def save(self, folder: Path) -> None:
        """Writes files for `open` and Hugging Face into a folder without a tokenizer.

        Stop and padding ids that special tokens do not name belong in the model's
        `generation_config.json`.
        """
        start = self.bos_id if self.add_bos else None
        config = self.backend.save(folder, start=start) | {
            "bos_token": self._name(self.bos_id),
            "eos_token": self._name(self.eos_id),
            "add_bos_token": self.add_bos,
            "clean_up_tokenization_spaces": False,
        }
        if (
            self.pad_id in self.backend.special.values()
        ):  # else decoders would skip an ordinary token
            config["pad_token"] = self._name(self.pad_id)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def _name(self, token: int | None) -> str | None:
        return None if token is None else self.backend.name(token)

    @property
    def vocab_size(self) -> int:
        """The number of ids, special and added ones included."""
        return self.backend.vocab_size

    def text_of(self, token: int) -> str:
        """Returns the text of one id in the vocabulary, special or not."""
        return self.backend.spell(token).decode("utf-8", errors="replace")

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Returns the ids of a text, with nothing added.

        With `special`, names of special tokens become their ids, as in prompts of templates.
        Without, they are ordinary text, as in the input of users.
        """
        return self.encode_parts(self.split(text) if special else [text])

    def split(self, text: str) -> list[str | int]:
        """Splits a text at its special tokens, and replaces these by their ids."""
        pattern, special = self.backend.special_pattern, self.backend.special
        if pattern is None:
            return [text]
        parts: list[str | int] = []
        at = 0
        for match in pattern.finditer(text):
            name = match[0] if match[0] in special else match[0].strip()
            parts += [text[at : match.start()], special[name]]
            at = match.end()
        return [part for part in [*parts, text[at:]] if part != ""]

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Returns the ids of plain text with given ids in between, split as at special tokens."""
        return self.backend.encode(
            [_well_formed(part) if isinstance(part, str) else part for part in parts]
        )

    def decode(
        self, ids: Iterable[SupportsIndex], *, skip_special: bool = True, continues: bool = False
    ) -> str:
        """Returns the text of some ids; bytes that are not UTF-8 become U+FFFD.

        `continues`: the ids follow other text, so that their leading space is kept.
        """
        stream = TextStream(self, skip_special=skip_special, continues=continues)
        return "".join([stream.push(token) for token in ids]) + stream.finish()


class TextStream:
    """Decodes ids one at a time; the joined results equal those of `decode`."""

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = True, continues: bool = False
    ) -> None:
        self._spell = tokenizer.backend.spell
        self._skipped = frozenset(tokenizer.backend.special.values()) if skip_special else ()
        self._strips = tokenizer.backend.strips_space and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: SupportsIndex) -> str:
        """Returns the text that this id completes, possibly none."""
        token = operator.index(token)
        data = b"" if token in self._skipped else self._spell(token)
        if self._strips and data:
            data, self._strips = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Returns U+FFFD for an incomplete character at the end, else nothing."""
        return self._decoder.decode(b"", final=True)


def _well_formed(text: str) -> str:
    """Joins surrogate pairs, which JSON may hold, and replaces lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class _Config:
    """The JSON files beside a Hugging Face tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.main = _read_json(folder / "tokenizer_config.json")
        self.generation = _read_json(folder / "generation_config.json")
        self._specials = _read_json(folder / "special_tokens_map.json")
        self._extra = _read_json(folder / "added_tokens.json")
        self._template_files = (folder / "chat_template.jinja", folder / "chat_template.json")

    @property
    def added(self) -> dict[str, int]:
        listed = self.main.get("added_tokens_decoder", {})
        return self._extra | {entry["content"]: int(i) for i, entry in listed.items()}

    def token(self, name: str, default: str | None = None) -> str | None:
        """Returns the text of e.g. `bos_token`, which may be wrapped in an object, or null."""
        value = self.main.get(name, self._specials.get(name, default))
        return value.get("content") if isinstance(value, dict) else value

    @property
    def chat_template(self) -> str | None:
        jinja, wrapped = self._template_files
        if jinja.is_file():
            return jinja.read_text(encoding="utf-8")
        template = self.main.get("chat_template", _read_json(wrapped).get("chat_template"))
        if isinstance(template, list):  # several, by name
            named = {entry["name"]: entry["template"] for entry in template}
            return named.get("default")
        return template


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is corrupted: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} is corrupted: it should hold one JSON object")
    return found


def _from_config(backend: FastTokenizer | SentencePiece, config: _Config) -> Tokenizer:
    def find(name: str, default: str | None = None) -> int | None:
        token = config.token(name, default)
        return backend.find(token) if token else None

    # A bare tokenizer.model has no config: its pieces bear LLaMA's names.
    bare = isinstance(backend, SentencePiece)
    bos_id = find("bos_token", "<s>" if bare else None)
    listed = config.generation.get("eos_token_id")
    add_bos = config.main.get("add_bos_token")
    if add_bos is None:
        add_bos = bos_id is not None and (bare or backend.adds(bos_id))
    return _tokenizer(
        backend,
        str(config.folder),
        bos_id=bos_id,
        eos_id=find("eos_token", "</s>" if bare else None),
        eos_ids=listed if isinstance(listed, list) else [listed],
        pad_ids=[
            find("pad_token"),
            config.generation.get("pad_token_id"),
            find("unk_token", "<unk>" if bare else None),
        ],
        add_bos=add_bos,
        chat_template=config.chat_template,
    )


def _tokenizer(
    backend: FastTokenizer | SentencePiece,
    source: str,
    *,
    bos_id: Any,
    eos_id: Any,
    eos_ids: Sequence[Any],
    pad_ids: Sequence[Any],
    add_bos: bool,
    chat_template: str | None,
) -> Tokenizer:
    """Makes a tokenizer of ids that may be anything: of padding, those that are none are skipped.

    Raises:
        UserError: An id that starts or ends a text is not in the vocabulary.
    """

    def is_id(value: Any) -> bool:
        return type(value) is int and 0 <= value < backend.vocab_size

    for name, ids in ("bos_token_id", [bos_id]), ("eos_token_id", [eos_id, *eos_ids]):
        if wrong := [value for value in ids if value is not None and not is_id(value)]:
            raise UserError(
                f"{source}: {name} {str(wrong[0])[:60]} is none of the tokenizer's ids, 0 to "
                f"{backend.vocab_size - 1}; correct it in the model's files"
            )
    stops = {eos_id, *eos_ids, *(backend.special.get(name) for name in _TURN_ENDS)} - {None}
    pads = [i for i in [*pad_ids, eos_id, 0] if is_id(i)]
    return Tokenizer(
        backend=backend,
        bos_id=bos_id,
        eos_id=eos_id,
        eos_ids=frozenset(i for i in stops if i is not None),
        pad_id=pads[0],
        add_bos=add_bos and bos_id is not None,
        chat_template=chat_template,
    )
