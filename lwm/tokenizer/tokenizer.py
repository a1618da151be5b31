"""Text to ids and back, from a Hugging Face folder, a SentencePiece model or a GGUF file.

No method adds a beginning or end of text: the caller adds `bos_id`; `add_bos` is true if the model
was trained with it.
"""

import codecs
import dataclasses
import functools
import json
import operator
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

from lwm.errors import UserError
from lwm.files import reading
from lwm.formats.gguf_file import find_gguf, is_gguf
from lwm.limits import require_bounded
from lwm.text import well_formed
from lwm.tokenizer import controls, pieces, tiktoken
from lwm.tokenizer.backends import FastTokenizer, SentencePiece
from lwm.tokenizer.config import TokenizerConfig
from lwm.tokenizer.gguf_tables import GGUFTables
from lwm.tokenizer.jinja import render
from lwm.tokenizer.lwm_format import LWM_JINJA, LWM_TEMPLATE
from lwm.tokenizer.panics import in_one_line

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
    """The model's own chat template: Jinja source, or `lwm` for LWM's format."""

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
        if file.suffix.lower() == ".gguf" or is_gguf(file):
            from lwm.formats.gguf import read_gguf

            return cls.from_gguf(read_gguf(file).metadata, str(file))
        config = TokenizerConfig(folder)
        if file.suffix.lower() == ".json":
            return _from_config(FastTokenizer.open(file), config)
        with reading(file):
            require_bounded(file)
            data = file.read_bytes()
        if tiktoken.is_tiktoken(data):
            size = config.llama_vocab_size
            backend = tiktoken.read_tiktoken(file, data, named=config.added, vocab_size=size)
            return _from_config(backend, config, named=(tiktoken.BOS, tiktoken.EOS, None))
        # A bare tokenizer.model has no config: its pieces bear LLaMA's names.
        with in_one_line(f"{file} is corrupted or not a SentencePiece model"):
            backend = SentencePiece(pieces.load(data, str(file)), config.added)
        return _from_config(backend, config, named=("<s>", "</s>", "<unk>"))

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, Any], source: str = "the GGUF tokenizer"
    ) -> "Tokenizer":
        """Builds the tokenizer that a GGUF file's metadata describes."""
        tables = GGUFTables(metadata, source)
        more = tables.get("eos_token_ids", default=[])  # as Ollama writes it
        return _tokenizer(
            tables.backend(),
            source,
            bos_id=tables.get("bos_token_id"),
            eos_id=tables.get("eos_token_id"),
            eos_ids=[
                tables.get("eot_token_id"),
                tables.get("eom_token_id"),
                *(more if isinstance(more, list) else [more]),
            ],
            pad_ids=[tables.get("padding_token_id"), tables.get("unknown_token_id")],
            add_bos=tables.add_bos,
            chat_template=tables.chat_template,
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
        if self.jinja is not None:
            config["chat_template"] = self.jinja
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_bytes(text.encode(errors="backslashreplace"))

    def _name(self, token: int | None) -> str | None:
        return None if token is None else self.backend.name(token)

    @property
    def jinja(self) -> str | None:
        """The source of the chat template, as other programs read it."""
        return LWM_JINJA if self.chat_template == LWM_TEMPLATE else self.chat_template

    @property
    def template_names(self) -> dict[str, str]:
        """The names of special tokens, as chat templates take them."""
        ids = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        return {name: self.text_of(i) for name, i in ids.items() if i is not None}

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
        return self.encode_parts(self.split(text) if special else self.split_markup(text))

    def split(self, text: str) -> list[str | int]:
        """Splits a text at its special tokens, and replaces these by their ids.

        So are other tokens that only the chat template writes.
        """
        backend = self.backend
        return _split(text, backend.reserved_pattern, backend.controls | backend.markup)

    def split_markup(self, text: str) -> list[str | int]:
        """Splits a text at markup of answers that is a token, such as `<think>`."""
        return _split(text, self.backend.markup_pattern, self.backend.markup)

    def under(self, template: str | None) -> "Tokenizer":
        """Returns the tokenizer for chats in a template that may not be the model's own.

        The added tokens that the template writes become control tokens, which no user can type,
        and the token that ends its answers one that stops generation.
        """
        if template is None or "{" not in template or template == self.chat_template:
            return self
        return _under(self, template)

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Returns the ids of plain text with given ids in between, split as at special tokens."""
        return self.backend.encode(
            [well_formed(part) if isinstance(part, str) else part for part in parts]
        )

    def decode(
        self, ids: Iterable[SupportsIndex], *, skip_special: bool = True, continues: bool = False
    ) -> str:
        """Returns the text of some ids; bytes that are not UTF-8 become U+FFFD.

        `continues`: the ids follow other text, so that their leading space is kept.
        """
        backend, ids = self.backend, [operator.index(token) for token in ids]
        shown = set(ids).difference(backend.special.values() if skip_special else ())
        spelled = {token: backend.spell(token) for token in shown}  # each id once in a long text
        data = b"".join([spelled[token] for token in ids if token in spelled])
        if backend.strips_space and not continues:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")


def with_format(tokenizer: Tokenizer, *, chats: bool) -> Tokenizer:
    """Returns the tokenizer with LWM's chat format, if the model chats and has no template."""
    if not chats or tokenizer.chat_template is not None:
        return tokenizer
    return dataclasses.replace(tokenizer, chat_template=LWM_TEMPLATE)


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


def _split(text: str, pattern: re.Pattern[str] | None, ids: Mapping[str, int]) -> list[str | int]:
    if pattern is None:
        return [text]
    parts: list[str | int] = []
    at = 0
    for match in pattern.finditer(text):
        name = match[0] if match[0] in ids else match[0].strip()
        parts += [text[at : match.start()], ids[name]]
        at = match.end()
    return [part for part in [*parts, text[at:]] if part != ""]


def _from_config(
    backend: FastTokenizer | SentencePiece,
    config: TokenizerConfig,
    named: tuple[str | None, str | None, str | None] = (None, None, None),
) -> Tokenizer:
    """Returns a tokenizer with what the files beside it say.

    Args:
        backend: The tokenizer's library.
        config: The files.
        named: Beginning, end and unknown token of a file that needs no config.
    """

    def find(name: str, default: str | None = None) -> int | None:
        token = config.token(name, default)
        return backend.find(token) if token else None

    bos, eos, unknown = named
    bos_id = find("bos_token", bos)
    add_bos = config.add_bos
    if add_bos is None:
        # SentencePiece's files have no rule for the start of a text.
        starts = isinstance(backend, SentencePiece) or (bos_id is not None and backend.adds(bos_id))
        add_bos = bos_id is not None and starts
    return _tokenizer(
        backend,
        str(config.folder),
        bos_id=bos_id,
        eos_id=find("eos_token", eos),
        eos_ids=config.eos_ids,
        pad_ids=[
            find("pad_token"),
            config.generation.get("pad_token_id"),
            find("unk_token", unknown),
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
    named = backend.special | backend.added
    stops = {eos_id, *eos_ids, *(named.get(name) for name in controls.TURN_ENDS)}
    pads = [i for i in [*pad_ids, eos_id, 0] if is_id(i)]
    template = LWM_TEMPLATE if chat_template == LWM_JINJA else chat_template
    made = Tokenizer(
        backend=backend,
        bos_id=bos_id,
        eos_id=eos_id,
        eos_ids=frozenset(i for i in stops if i is not None),
        pad_id=pads[0],
        add_bos=add_bos and bos_id is not None,
        chat_template=template,
    )
    jinja = None if template == LWM_TEMPLATE else template
    backend.reserve(*_reserved(made, jinja or ""))
    return made if jinja is None else _with_end(made, jinja)


def _reserved(tokenizer: Tokenizer, template: str) -> tuple[set[str], set[str]]:
    """Returns the added tokens that are not to come of what users type: controls, and markup."""
    backend = tokenizer.backend
    taken = backend.controls | backend.markup
    free = {name: i for name, i in backend.added.items() if name not in taken}
    ends = {tokenizer.bos_id, tokenizer.eos_id, *tokenizer.eos_ids}
    own = controls.like(name for name, i in free.items() if i in ends)
    written = controls.written(free, template) - own
    tags = written & controls.tags(backend.special | backend.added)
    return own | written - tags, tags


@functools.lru_cache(maxsize=8)
def _under(tokenizer: Tokenizer, template: str) -> Tokenizer:
    found = _reserved(tokenizer, template)
    if any(found):
        backend = pickle.loads(pickle.dumps(tokenizer.backend))
        backend.reserve(*found)
        tokenizer = dataclasses.replace(tokenizer, backend=backend)
    return _with_end(tokenizer, template)


def _with_end(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """Adds the token that a template writes after an answer to those that stop generation."""
    named = tokenizer.backend.special | tokenizer.backend.added
    known = {name for name, i in named.items() if i in tokenizer.eos_ids}
    # Most templates name an end that is known; only the others are run.
    if any(name in template for name in known) or (known and "eos_token" in template):
        return tokenizer
    end = _turn_end(tokenizer, template)
    return dataclasses.replace(tokenizer, eos_ids=tokenizer.eos_ids | end)


def _turn_end(tokenizer: Tokenizer, template: str) -> set[int]:
    """Returns the id that a template writes after an answer, if it writes one."""
    answer = "An answer."
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        text = render(template, said, tokenizer.template_names).text
    except UserError:
        return set()
    first = tokenizer.split(text.rpartition(answer)[2].lstrip())[:1]
    return {part for part in first if answer in text and isinstance(part, int)}
