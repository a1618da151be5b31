"""The two tokenizer libraries behind one interface.

`FastTokenizer` wraps `tokenizers` (a `tokenizer.json`, or byte-pair tables), `SentencePiece` wraps
`sentencepiece` (a `tokenizer.model`, or LLaMA-2's tables). Each encodes a list of texts and ids,
and decodes one id to bytes. Text never yields a special token here, nor one that `reserve` names;
`Tokenizer` handles these.
"""

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lwm.files import reading
from lwm.limits import require_bounded
from lwm.tokenizer import long, pieces
from lwm.tokenizer.panics import in_one_line, quiet
from lwm.tokenizer.splits import family_of, word_splitter

# Placeholder of an id in one call to `tokenizers`, so that the text around it is split as at a
# special token. Unicode guarantees that no text uses it.
_MARK = "\ufdd0"
# Long runs of each kind of letter, which a word split that backtracks without end does not survive.
_PROBE = "".join(f"{run * 40}{end}" for run in "aA1.\n é日" for end in "!x")


def _byte_alphabet() -> dict[str, int]:
    """Returns the byte of each printable character of GPT-2's byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + i): byte for i, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


_BYTE_OF = _byte_alphabet()


def byte_letters() -> list[str]:
    """Returns the printable character of each byte in byte-level BPE."""
    return sorted(_BYTE_OF, key=_BYTE_OF.__getitem__)


def _pattern(alternatives: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(alternatives, key=len, reverse=True)
    return re.compile("|".join(longest_first)) if longest_first else None


class _Names:
    """Names of the tokens that text does not yield, and the patterns that find them in it."""

    def __init__(
        self, special: dict[str, int], added: dict[str, int], patterns: Mapping[str, str]
    ) -> None:
        self.special = special
        """Special tokens; decoding leaves them out."""
        self.added = added
        """Added tokens that are not special: text yields them, unless they are reserved."""
        self.markup: dict[str, int] = {}
        """Reserved tokens that answers hold as well, such as `<think>`."""
        self.controls = special
        """Special tokens, and the other reserved ones."""
        self._patterns = patterns
        self._compile()

    def _name(self, controls: Collection[str], markup: Collection[str]) -> None:
        self.markup |= {name: self.added[name] for name in markup}
        self.controls = self.controls | {name: self.added[name] for name in controls}
        self._compile()

    def _compile(self) -> None:
        self.control_pattern = self._find(self.controls)
        self.markup_pattern = self._find(self.markup)
        self.reserved_pattern = self._find(self.controls | self.markup)

    def _find(self, names: Iterable[str]) -> re.Pattern[str] | None:
        return _pattern(self._patterns.get(name) or re.escape(name) for name in names if name)


class FastTokenizer(_Names, long.InPieces):
    """A `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import AddedToken

        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.growth = long.growth_of(long.steps_of(tokenizer.normalizer, "normalizers"))
        added = tokenizer.get_added_tokens_decoder()
        self.vocab_size: int = max([tokenizer.get_vocab_size(), *(i + 1 for i in added)])
        super().__init__(
            special={t.content: i for i, t in added.items() if t.special},
            added={t.content: i for i, t in added.items() if not t.special},
            patterns={
                # From the start of a run of spaces only, or a long one takes quadratic time.
                t.content: r"(?:(?<!\s)\s+)?" * t.lstrip + re.escape(t.content) + r"\s*" * t.rstrip
                for t in added.values()
            },
        )
        self._added = {i: t.content.encode() for i, t in added.items()}
        steps = long.steps_of(tokenizer.decoder, "decoders")
        self._bytewise = any(step["type"] == "ByteLevel" for step in steps)
        self.strips_space: bool = any(map(_strips_space, steps))
        tokenizer.encode_special_tokens = True  # that is, as ordinary text
        tokenizer.add_tokens([AddedToken(_MARK, normalized=False, special=False)])
        self._mark_id = tokenizer.token_to_id(_MARK)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # `tokenizers` does not pickle this; without it, text could yield any token.
        self._tokenizer.encode_special_tokens = True

    @classmethod
    def open(cls, file: Path) -> "FastTokenizer":
        """Reads a `tokenizer.json`."""
        from tokenizers import Tokenizer

        with reading(file):
            require_bounded(file)
        with quiet(), in_one_line(f"{file} is corrupted or not a tokenizer"):
            opened = cls(Tokenizer.from_file(str(file)))
            with contextlib.suppress(Exception):  # it may lack an id for some of it
                opened._tokenizer.encode(_PROBE, add_special_tokens=False)
        return opened

    @classmethod
    def from_tables(
        cls, tokens: list[str], merges: list[str], kinds: list[int], pre: str | None
    ) -> "FastTokenizer":
        """Builds byte-level BPE from the tables of a GGUF file; `pre` names its word splitting."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

        family = family_of(pre)
        tokenizer = Tokenizer(
            models.BPE(
                vocab={token: i for i, token in enumerate(tokens)},
                merges=[(left, right) for left, right in (merge.split(" ", 1) for merge in merges)],
                ignore_merges=family == "llama-bpe",
            )
        )
        if family == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = word_splitter(family)
        tokenizer.decoder = decoders.ByteLevel()
        for kind, add in (
            (pieces.CONTROL, tokenizer.add_special_tokens),
            (pieces.USER_DEFINED, tokenizer.add_tokens),
        ):
            found = [token for token, k in zip(tokens, kinds, strict=True) if k == kind]
            add([AddedToken(token, normalized=False) for token in found])
        return cls(tokenizer)

    def reserve(self, controls: Collection[str], markup: Collection[str]) -> None:
        """Keeps these added tokens from text, as special ones are."""
        from tokenizers import AddedToken

        if not controls and not markup:
            return
        self._tokenizer.add_special_tokens(
            [
                AddedToken(
                    token.content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=True,
                )
                for token in self._tokenizer.get_added_tokens_decoder().values()
                if token.content in {*controls, *markup}
            ]
        )
        self._name(controls, markup)

    def adds(self, bos_id: int) -> bool:
        """Returns whether the tokenizer's post-processing starts a text with this id."""
        with in_one_line("the tokenizer cannot encode an empty text"):
            return self._tokenizer.encode("", add_special_tokens=True).ids[:1] == [bos_id]

    def name(self, token: int) -> str | None:
        """Returns the name of an id in the vocabulary."""
        return self._tokenizer.id_to_token(token)

    def find(self, name: str) -> int | None:
        """Returns the id of a name in the vocabulary, special or not."""
        return self._tokenizer.token_to_id(name)

    @property
    def word_splits(self) -> list[dict[str, Any]]:
        """The settings of each step that splits a text into words."""
        return long.steps_of(self._tokenizer.pre_tokenizer, "pretokenizers")

    def settings(self) -> dict[str, Any]:
        """Returns the contents of `tokenizer.json`."""
        state = json.loads(self._tokenizer.to_str())
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] != _MARK]
        for token in state["added_tokens"]:
            token["special"] = token["content"] in self.special
        return state

    def save(self, folder: Path, *, start: int | None) -> dict[str, Any]:
        """Writes `tokenizer.json`; returns its entries of `tokenizer_config.json`.

        Each text is to start with the id `start`, unless the tokenizer has a rule of its own.
        """
        from tokenizers import Tokenizer, processors

        tokenizer = Tokenizer.from_str(json.dumps(self.settings()))
        if start is not None and tokenizer.post_processor is None:
            name = self.name(start)
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[name, "$A"], pair=[name, "$A", name, "$B"], special_tokens=[(name, start)]
            )
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        return {"tokenizer_class": "PreTrainedTokenizerFast"}

    def encode(self, parts: Sequence[str | int]) -> list[int]:
        """Encodes texts, with special tokens as plain text, and passes ids through."""
        text = "".join(
            _MARK if isinstance(part, int) else part.replace(_MARK, "\ufffd") for part in parts
        )
        given = [part for part in parts if isinstance(part, int)]
        ids = self._ids_of_any(text)
        if not given:
            return ids
        left = iter(given)
        return [next(left) if token == self._mark_id else token for token in ids]

    def _ids(self, text: str) -> list[int]:
        return self._encoded(text).ids

    @functools.cached_property
    def _inside(self) -> frozenset[str] | None:
        if self._bytewise and self._tokenizer.pre_tokenizer is not None:
            return None
        return long.pairs_in(self._tokenizer.get_vocab(with_added_tokens=False))

    def _spans(self, text: str) -> list[tuple[int, int]]:
        text = text.replace(_MARK, "\ufffd")
        return self._encoded(text).offsets

    def _encoded(self, text: str) -> Any:
        with in_one_line("the tokenizer cannot encode this text"):
            return self._tokenizer.encode(text, add_special_tokens=False)

    def spell(self, token: int) -> bytes:
        """Returns the bytes of an id; none for an id outside the vocabulary."""
        if token in self._added:
            return self._added[token]
        text = self._tokenizer.id_to_token(token) if 0 <= token < self.vocab_size else None
        if text is None:
            return b""
        if self._bytewise and all(letter in _BYTE_OF for letter in text):
            return bytes(_BYTE_OF[letter] for letter in text)
        return _spell_piece(text)


class SentencePiece(_Names, long.InPieces):
    """A `sentencepiece.SentencePieceProcessor` with added tokens."""

    def __init__(self, model: Any, added: dict[str, int]) -> None:
        self._model = model
        self.proto: bytes = model.serialized_model_proto()
        """The model as bytes, as it was read."""
        table = pieces.replacements(self.proto)
        self.growth = long.growth_of([{"type": "Precompiled", "precompiled_charsmap": table}])
        size = model.vocab_size()
        special_ids = [i for i in range(size) if model.is_control(i) or model.is_unknown(i)]
        super().__init__(
            special={model.id_to_piece(i): i for i in special_ids} | added,
            added={
                name: model.piece_to_id(name)
                for name in pieces.user_defined(self.proto)
                if name not in added
            },
            patterns={},
        )
        self._added = {i: text.encode() for text, i in self.special.items()}
        self.vocab_size: int = max([size, *(i + 1 for i in added.values())])
        self.strips_space: bool = model.encode("a", out_type=str)[0].startswith("\u2581")

    @classmethod
    def from_tables(
        cls, tokens: list[str], scores: list[float], kinds: list[int], *, prefix: bool
    ) -> "SentencePiece":
        """Builds SentencePiece BPE from the tables in a GGUF file."""
        data = pieces.of_tables(tokens, scores, kinds, prefix=prefix)
        return cls(pieces.load(data, "the GGUF tokenizer"), {})

    def reserve(self, controls: Collection[str], markup: Collection[str]) -> None:
        """Keeps these added tokens from text, as special ones are."""
        if not controls and not markup:
            return
        self._name(controls, markup)
        names = {*self.controls, *self.markup} - set(self.special)
        self._model = pieces.load(pieces.as_control(self.proto, names), "the tokenizer")

    def name(self, token: int) -> str | None:
        """Returns the name of an id in the vocabulary."""
        names = {i: name for name, i in self.special.items()}
        if token in names or not 0 <= token < self._model.vocab_size():
            return names.get(token)
        return self._model.id_to_piece(token)

    def find(self, name: str) -> int | None:
        """Returns the id of a name in the vocabulary, special or not."""
        if name in self.special:
            return self.special[name]
        found = self._model.piece_to_id(name)
        return found if self._model.id_to_piece(found) == name else None

    def save(self, folder: Path, *, start: int | None) -> dict[str, Any]:
        """Writes `tokenizer.model`; returns its entries of `tokenizer_config.json`.

        `start` is not used: such a file has no rule for the start of a text.
        """
        (folder / "tokenizer.model").write_bytes(self.proto)
        plain = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
        return {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": True,  # text after a special token is encoded like the start of a text
            "add_prefix_space": self.strips_space,
            "unk_token": self._model.id_to_piece(self._model.unk_id()),
            "added_tokens_decoder": {
                str(i): {"content": name, "special": True, **plain}
                for name, i in sorted(self.special.items(), key=lambda item: item[1])
            },
        }

    def encode(self, parts: Sequence[str | int]) -> list[int]:
        """Encodes texts, with special tokens as plain text, and passes ids through."""
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._ids_of_any(part)
        return ids

    def _ids(self, text: str) -> list[int]:
        with in_one_line("the tokenizer cannot encode this text"):
            return self._model.encode(text)

    @functools.cached_property
    def _inside(self) -> frozenset[str] | None:
        return long.pairs_in(map(self._model.id_to_piece, range(self._model.vocab_size())))

    def _spans(self, text: str) -> list[tuple[int, int]]:
        if not hasattr(self._model, "encode_as_proto"):  # before sentencepiece 0.2.2
            found = self._model.encode(text, out_type="immutable_proto").pieces
            return [(piece.begin, piece.end) for piece in found]
        spans = [(piece.begin, piece.end) for piece in self._model.encode_as_proto(text).pieces]
        data = text.encode()
        if len(data) == len(text):
            return spans
        # These count bytes.
        at = list(itertools.accumulate((byte & 0xC0 != 0x80 for byte in data), initial=0))
        return [(at[begin], at[end]) for begin, end in spans]

    def spell(self, token: int) -> bytes:
        """Returns the bytes of an id; none for an id outside the vocabulary."""
        if token in self._added:
            return self._added[token]
        if not 0 <= token < self._model.vocab_size():
            return b""
        return _spell_piece(self._model.id_to_piece(token))


def _spell_piece(text: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode()


def _strips_space(step: dict[str, Any]) -> bool:
    """Returns whether a decoder step removes the space that encoding adds before the first word."""
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always") != "never"
    return step["type"] == "Strip" and step["start"] > 0
