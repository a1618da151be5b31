"""SentencePiece models as bytes: made of the tables of a GGUF file, and pieces of another type."""

import struct
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from lwm.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces, with the same numbers in SentencePiece and in GGUF."""

_PIECE, _TEXT, _SCORE, _TYPE = 1, 1, 2, 3
_DATA = 2  # the wire type of bytes


class Tables(NamedTuple):
    """The tables that a GGUF file holds of a SentencePiece model."""

    tokens: list[str]
    scores: list[float]
    kinds: list[int]
    prefix: bool
    """True if a space is added before a text."""


def load(data: bytes, source: str) -> Any:
    """Opens a model.

    Raises:
        UserError: The bytes are no model.
    """
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(data)
        empty = model.vocab_size() == 0
    except Exception:
        empty = True
    if empty:
        raise UserError(f"{source} is corrupted or not a SentencePiece model")
    return model


def of_tables(tokens: list[str], scores: list[float], kinds: list[int], *, prefix: bool) -> bytes:
    """Returns a byte-pair model of the tables in a GGUF file."""
    pieces = b"".join(
        _field(_PIECE, _field(_TEXT, token.encode()) + _field(_SCORE, score) + _field(_TYPE, kind))
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    )
    # TrainerSpec: model_type BPE, byte_fallback. NormalizerSpec: identity, the dummy prefix,
    # spaces kept as they are.
    trainer = _field(3, 2) + _field(35, int(BYTE in kinds))
    # SentencePiece requires the name of the unknown piece.
    named = zip(tokens, kinds, strict=True)
    trainer += b"".join(_field(45, token.encode()) for token, k in named if k == UNKNOWN)
    normalizer = _field(1, b"identity") + _field(3, int(prefix)) + _field(4, 0)
    return pieces + _field(2, trainer) + _field(3, normalizer)


def to_tables(data: bytes) -> Tables:
    """Returns the tables of a byte-pair model, from which `of_tables` makes one that is alike.

    Raises:
        UserError: The model is of another kind, or changes texts before it splits them.
    """
    tokens, scores, kinds = [], [], []
    for number, piece in _fields(data):
        if number == _PIECE and isinstance(piece, bytes):
            found = dict(_fields(piece))
            score = found.get(_SCORE, bytes(4))
            tokens.append(_text(piece))
            scores.append(struct.unpack("<f", score)[0] if isinstance(score, bytes) else 0.0)
            kinds.append(_type(piece))
    trainer, normalizer = dict(_fields(_last(data, 2))), dict(_fields(_last(data, 3)))
    is_byte_pairs = trainer.get(3, 1) == 2 and not trainer.get(24)
    # The replacements, the removal of spaces, and the letter that stands for a space.
    if not is_byte_pairs or normalizer.get(2) or normalizer.get(4, 1) or not normalizer.get(5, 1):
        raise UserError(
            "GGUF has no place for this tokenizer: it is not byte pairs, or changes texts before "
            "it splits them; convert with --to hf"
        )
    return Tables(tokens, scores, kinds, bool(normalizer.get(3, 1)))


def user_defined(data: bytes) -> list[str]:
    """Returns the pieces that the maker of a model added to it, which any text can hold."""
    mark = _field(_TYPE, USER_DEFINED)
    if mark not in data:
        return []
    pieces = [value for number, value in _fields(data) if number == _PIECE]
    maybe = [piece for piece in pieces if isinstance(piece, bytes) and mark in piece]
    return [_text(piece) for piece in maybe if _type(piece) == USER_DEFINED]


def replacements(data: bytes) -> bytes:
    """Returns the table of what the normalizer of a model replaces, or no bytes."""
    at = 0
    while data[at : at + 1] == b"\n" and data[at + 1] < 128:  # a piece: there are very many
        at += 2 + data[at + 1]
    return _last(_last(data[at:], 3), 2)


def _last(data: bytes, field: int) -> bytes:
    """Returns the last value of a field, or no bytes."""
    found = [value for number, value in _fields(data) if number == field]
    return found[-1] if found and isinstance(found[-1], bytes) else b""


def as_control(data: bytes, names: Collection[str]) -> bytes:
    """Returns a model in which these pieces are control tokens, which no text yields."""
    out = bytearray()
    for number, value in _fields(data):
        if number == _PIECE and isinstance(value, bytes) and _text(value) in names:
            value += _field(_TYPE, CONTROL)  # of a field that occurs twice, the last holds
        out += _field(number, value)
    return bytes(out)


def _text(piece: bytes) -> str:
    found = [value for number, value in _fields(piece) if number == _TEXT]
    return found[-1].decode() if found and isinstance(found[-1], bytes) else ""


def _type(piece: bytes) -> int:
    found = [value for number, value in _fields(piece) if number == _TYPE]
    return found[-1] if found and isinstance(found[-1], int) else NORMAL


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields numbers and values of protobuf fields; fixed-size numbers as their bytes."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        if key & 7 == 0:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        if key & 7 == _DATA:
            size, at = _read_varint(data, at)
        else:
            size = {1: 8, 5: 4}[key & 7]
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] > 127:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _field(number: int, value: int | float | bytes) -> bytes:
    """Encodes one protobuf field."""
    if isinstance(value, bytes):
        return _varint(number << 3 | _DATA) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
