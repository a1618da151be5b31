"""Metadata of GGUF files that describes a tokenizer; `lwm.tokenizer.gguf_tables` reads it.

llama.cpp builds a tokenizer of tables: byte-level BPE whose words are split by a rule that it knows
by name, or SentencePiece's byte pairs. Tables made here are read back and compared with the
tokenizer before they are used, since not every tokenizer is one of these.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from lwm.errors import UserError
from lwm.text import well_formed
from lwm.tokenizer import pieces
from lwm.tokenizer.backends import FastTokenizer, SentencePiece
from lwm.tokenizer.splits import FAMILIES, families_of
from lwm.tokenizer.tokenizer import Tokenizer

_LINES = 2000
"""Lines of a text that is encoded at once."""
_HARD = (
    "Hello world, it's the 2nd of 1,234,567 tests; they've NOT'D we'LL\n\n\n  def f:\n\treturn x",
    "a  b   c    \n \n\r\n\t\t x\u00a0y\u3000z \u200b ",
    "caf\u00e9 cafe\u0301 \u00c5 A\u030a \ufb01 \u1e9b\u0323 \u0130I\u0131",
    "\u65e5\u672c\u8a9e\u306e\u6587 \u4e2d\u6587\uff0c\u6807\u70b9\u3002 \ud55c\uad6d\uc5b4 "
    "\u0440\u0443\u0441 \u0645\u0631\u062d\u0628\u0627 \u0967\u0968\u0969 \u0e44\u0e17\u0e22",
    "\U0001f600\U0001f469\u200d\U0001f4bb \U0001f1e9\U0001f1ea \U0001d518",
    "<s></s> <unk> <|im_end|> [PAD1] <0x41> {{ x }} $1+2=3; http://a.b/c?d=e&f#g_h --- ***",
    "\x00\x01\x7f\x85 aaaaaaaaaaaaaaaa \u2581 \u2581\u2581a \u0120b \ufffd",
)
"""Texts that tokenizers of different kinds split differently; none begins with a space."""


class Metadata(NamedTuple):
    """Entries of a GGUF file, and what they do not say."""

    values: dict[str, Any]
    note: str | None
    """A difference to llama.cpp that remains, in one line."""


def gguf_metadata(tokenizer: Tokenizer, names: Sequence[str], kinds: Sequence[int]) -> Metadata:
    """Returns the entries `tokenizer.*` of a GGUF file.

    Args:
        tokenizer: The model's tokenizer.
        names: Names of the ids after those of the tokenizer.
        kinds: Their types, as of pieces.

    Raises:
        UserError: GGUF has no place for a tokenizer of this kind.
    """
    common = _special(tokenizer)
    for tables in _candidates(tokenizer.backend):
        try:
            read = Tokenizer.from_gguf(common | tables)
        except UserError:
            continue
        if _is_alike(read, tokenizer, tables["tokenizer.ggml.tokens"]):
            return Metadata(common | _extended(tables, names, kinds), _note(read, tokenizer))
    raise UserError(
        "GGUF has no place for this tokenizer: llama.cpp knows no rule that splits texts as it "
        "does; convert with --to hf"
    )


def _note(read: Tokenizer, tokenizer: Tokenizer) -> str | None:
    """Returns what differs at spaces, of which not all rules have a place in GGUF."""
    if read.encode(" a") != tokenizer.encode(" a"):
        return "llama.cpp encodes a space at the start of a text unlike this model's tokenizer"
    for name in tokenizer.backend.special:
        text = f"a{name}b {name} c"
        if read.encode(text) != tokenizer.encode(text):
            return (
                f"llama.cpp encodes spaces beside {name} and other special tokens unlike this "
                "model's tokenizer"
            )
    return None


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns ids and rules beside the tables."""
    # The name of each key is llama.cpp's; those of more than three ends are Ollama's.
    ends = sorted(tokenizer.eos_ids - {tokenizer.eos_id})
    found = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id if tokenizer.eos_id is not None or not ends else ends[0],
        "eot_token_id": ends[0] if ends else None,
        "eos_token_ids": ends if len(ends) > 1 else None,
        "padding_token_id": tokenizer.pad_id,
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": False,
    }
    there = {key: value for key, value in found.items() if value is not None}
    values: dict[str, Any] = {f"tokenizer.ggml.{key}": value for key, value in there.items()}
    if tokenizer.jinja is not None:
        values["tokenizer.chat_template"] = well_formed(tokenizer.jinja)
    return values


def _candidates(backend: FastTokenizer | SentencePiece) -> Iterator[dict[str, Any]]:
    """Yields tables that may describe a tokenizer."""
    if isinstance(backend, SentencePiece):
        found = pieces.to_tables(backend.proto)
        tokens, kinds = _with_added(found.tokens, found.kinds, backend.special)
        scores = found.scores + [0.0] * (len(tokens) - len(found.tokens))
        yield _of_pieces(tokens, scores, kinds, prefix=found.prefix)
        return
    settings = backend.settings()
    model = settings["model"]
    if model["type"] != "BPE":
        return
    by_id = {number: token for token, number in model["vocab"].items()}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(max(by_id) + 1)]
    kinds = [pieces.NORMAL if i in by_id else pieces.UNUSED for i in range(len(tokens))]
    tokens, kinds = _with_added(tokens, kinds, backend.added, kind=pieces.USER_DEFINED)
    tokens, kinds = _with_added(tokens, kinds, backend.special)
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    if model["byte_fallback"]:
        scores, kinds = _scores(tokens, merges), _piece_kinds(tokens, kinds, model["unk_token"])
        for prefix in (True, False):
            yield _of_pieces(tokens, scores, kinds, prefix=prefix)
        return
    for pre in families_of(backend.word_splits) if merges else FAMILIES:
        tables: dict[str, Any] = {
            "model": "gpt2",
            "pre": pre,
            "tokens": tokens,
            "token_type": kinds,
        }
        tables |= {"merges": merges} if merges else {}
        yield {f"tokenizer.ggml.{key}": value for key, value in tables.items()}


def _of_pieces(
    tokens: list[str], scores: list[float], kinds: list[int], *, prefix: bool
) -> dict[str, Any]:
    unknown = [number for number, kind in enumerate(kinds) if kind == pieces.UNKNOWN]
    tables = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": scores,
        "token_type": kinds,
        "add_space_prefix": prefix,
        **({"unknown_token_id": unknown[0]} if unknown else {}),
    }
    return {f"tokenizer.ggml.{key}": value for key, value in tables.items()}


def _with_added(
    tokens: list[str], kinds: list[int], added: dict[str, int], *, kind: int = pieces.CONTROL
) -> tuple[list[str], list[int]]:
    """Returns the tables with added tokens at their ids; ids between are unused."""
    tokens, kinds = list(tokens), list(kinds)
    for name, number in added.items():
        while len(tokens) <= number:
            tokens.append(f"[PAD{len(tokens)}]")
            kinds.append(pieces.UNUSED)
        tokens[number] = name
        if kinds[number] not in (pieces.UNKNOWN, pieces.CONTROL):
            kinds[number] = kind
    return tokens, kinds


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Returns scores that merge pairs in the order of a list of merges."""
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), number)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _piece_kinds(tokens: list[str], kinds: list[int], unknown: str | None) -> list[int]:
    is_byte = {f"<0x{byte:02X}>" for byte in range(256)}
    found = [pieces.BYTE if t in is_byte else k for t, k in zip(tokens, kinds, strict=True)]
    if unknown in tokens:
        found[tokens.index(unknown)] = pieces.UNKNOWN
    return found


def _extended(tables: dict[str, Any], names: Sequence[str], kinds: Sequence[int]) -> dict[str, Any]:
    more = {"tokens": names, "token_type": kinds, "scores": [0.0] * len(names)}
    more = {f"tokenizer.ggml.{key}": list(value) for key, value in more.items()}
    return tables | {key: tables[key] + value for key, value in more.items() if key in tables}


def _is_alike(one: Tokenizer, two: Tokenizer, tokens: Iterable[str]) -> bool:
    """Returns whether two tokenizers give the same ids for hard texts and for every word."""
    words = (two.text_of(number) for number, _ in enumerate(tokens))
    lines = iter(word for word in words if "\ufffd" not in word)
    texts = iter(lambda: "\n".join(["", *itertools.islice(lines, _LINES)]), "")
    for text in itertools.chain(_HARD, texts):
        ids = two.encode(text, special=False)
        if one.encode(text, special=False) != ids or one.decode(ids) != two.decode(ids):
            return False
    return True
