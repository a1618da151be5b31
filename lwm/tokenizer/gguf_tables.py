"""The tokenizer that the metadata of a GGUF file describes: its tables, and the values beside."""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from lwm.errors import UserError
from lwm.formats.gguf_config import OWN
from lwm.tokenizer import pieces
from lwm.tokenizer.backends import FastTokenizer, SentencePiece
from lwm.tokenizer.controls import TURN_ENDS
from lwm.tokenizer.panics import in_one_line
from lwm.tokenizer.splits import family_of


class GGUFTables:
    """The entries `tokenizer.*`; all methods refuse a value of a type that they do not have."""

    def __init__(self, metadata: Mapping[str, Any], source: str) -> None:
        self._metadata, self._source = metadata, source
        self._model, self._pre = self.get("model"), self.get("pre", str)

    def get(self, key: str, kind: type | None = None, default: Any = None) -> Any:
        """Returns the value of `tokenizer.ggml.*`."""
        return self._value(f"tokenizer.ggml.{key}", kind, default)

    def backend(self) -> FastTokenizer | SentencePiece:
        """Builds the tokenizer.

        Raises:
            UserError: Its kind is not supported, or its tables are corrupted.
        """
        tokens = self._table("tokens", str)
        kinds = self._table("token_type", int) or [pieces.NORMAL] * len(tokens)
        self._require_length("token_type", kinds, tokens)
        size = self._size(tokens, kinds)
        # Some files list ends of turns as words, which llama.cpp corrects as well.
        kinds = [
            pieces.CONTROL if kind == pieces.NORMAL and token in TURN_ENDS else kind
            for token, kind in zip(tokens[:size], kinds[:size], strict=True)
        ]
        if self._model not in ("gpt2", "llama"):
            name = reprlib.repr(self._model)
            raise UserError(f"the GGUF tokenizer is of kind {name}; supported: gpt2, llama")
        with in_one_line("the GGUF tokenizer's tables are corrupted"):
            if self._model == "gpt2":
                merges = self._table("merges", str)
                return FastTokenizer.from_tables(tokens[:size], merges, kinds, self._pre)
            scores = self._table("scores", float)
            self._require_length("scores", scores, tokens)
            if any(map(math.isnan, scores)):
                raise UserError(f"{self._source}: tokenizer.ggml.scores holds NaN; fetch it again")
            prefix = self.get("add_space_prefix", bool, True)
            return SentencePiece.from_tables(tokens[:size], scores[:size], kinds, prefix=prefix)

    @property
    def add_bos(self) -> bool:
        """True if a text starts with `bos_token_id`; by default as in llama.cpp."""
        starts = self._model == "llama" or family_of(self._pre) == "llama-bpe"
        return self.get("add_bos_token", bool, starts)

    @property
    def chat_template(self) -> str | None:
        """The chat template."""
        return self._value("tokenizer.chat_template", str, None)

    def _value(self, key: str, kind: type | None, default: Any) -> Any:
        value = self._metadata.get(key)
        if value is None:
            return default
        if kind is not None and type(value) is not kind:
            raise self._wrong(key, value, f"no {kind.__name__}")
        return value

    def _size(self, tokens: list[str], kinds: list[int]) -> int:
        """Returns the number of ids that are text: those before the vision ids and the padding."""
        text = self._value(f"{OWN}.token_space.text", int, len(tokens))
        size = max(0, min(text, len(tokens)))
        while size and kinds[size - 1] == pieces.UNUSED and tokens[size - 1] == f"[PAD{size - 1}]":
            size -= 1
        return size

    def _table(self, key: str, kind: type) -> list[Any]:
        table = self.get(key, list, [])
        if odd := [each for each in table if type(each) is not kind][:1]:
            raise self._wrong(f"tokenizer.ggml.{key}", odd, f"no list of {kind.__name__}")
        return table

    def _require_length(self, key: str, table: list[Any], tokens: list[str]) -> None:
        if len(table) != len(tokens):
            raise UserError(
                f"{self._source}: the tables are corrupted: tokenizer.ggml.{key} has {len(table)} "
                f"entries for {len(tokens)} tokens; fetch the file again"
            )

    def _wrong(self, key: str, value: Any, problem: str) -> UserError:
        return UserError(
            f"{self._source}: metadata entry {key!r} is {reprlib.repr(value)}, {problem}; fetch "
            "the file again"
        )
