"""Encodes records, JSON objects, as training examples: chats, documents, captioned images and more.

    {"fields": "[question],[vision],answer", "question": ..., "vision": [codes], "answer": ...}
    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    {"parts": [{"type": "text", "text": ...}, {"type": "image", "vision": [codes]}, ...]}
    {"caption": ..., "vision": [codes]}, or "question" and "answer" in place of "caption"
    {"text": ...}
    {"ids": [ids of the model's token space], "learn": [loss mask of 0 and 1; default: all 1]}

The first is LWM's: a list under a key that contains "vision" holds the codes of an image or a
video, frame after frame, without markers. The `content` of a message may be a list of parts as in a
document. "frames" beside codes is the number of frames.
"""

import dataclasses
import functools
import itertools
import random
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from lwm.data import captions
from lwm.data.captions import share
from lwm.data.chat import chat_ids
from lwm.data.conversation import read_conversation, with_system
from lwm.data.example import Example, MaskedIds
from lwm.data.format import ExampleFormat
from lwm.data.sources import is_missing
from lwm.errors import UserError
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.message import Message, Part, Vision, flat_codes, part_of
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

BOS, EOS = "<|bos|>", "<|eos|>"
LWM_TOKENS_PER_FRAME = 256
# Forms of other data sets, as fields.
_HINTS = {
    "completion": "; name the fields: [prompt],completion",
    "response": "; name the fields: [prompt],response",
    "output": "; name the fields: [instruction],output or [instruction+input],output",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordEncoder:
    """Encodes records as examples."""

    tokenizer: Tokenizer
    tokens: TokenSpace
    format: ExampleFormat = dataclasses.field(default_factory=ExampleFormat)

    @functools.cached_property
    def marks(self) -> VisionMarkers | None:
        """The ids around frames; None if the model reads no vision."""
        return VisionMarkers.of(self.tokenizer, self.tokens) if self.tokens.vision else None

    def encode(
        self,
        record: Mapping[str, Any],
        *,
        name: str = "record",
        line: int = 0,
        number: int = 0,
        variant: int = 0,
    ) -> Example:
        """Encodes a record.

        Args:
            record: One JSON object; a key that holds null or NaN counts as missing. Of several
                captions one is used, by the number and the variant.
            name: Its name in messages.
            line: Its line in its file, from 0: the seed of LWM's choice among `fields`.
            number: Its number in the whole set, from 0: the seed of the shares of captions.
            variant: Its number among `format.captions.variants`, from 0.

        Raises:
            UserError: The record does not fit its format; the key is named.
        """
        present = {key: value for key, value in record.items() if not is_missing(value)}
        several = present.get(self.format.captions.key)
        if isinstance(several, list) and several and all(isinstance(one, str) for one in several):
            present[self.format.captions.key] = several[(number + variant) % len(several)]
        try:
            return self._encode(present, name, line, (number, variant))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    def _encode(
        self, record: Mapping[str, Any], name: str, line: int, place: tuple[int, int]
    ) -> Example:
        kind = self._guess(record) if self.format.format == "auto" else self.format.format
        if kind == "messages":
            said, variables = read_conversation(record, tokens_per_frame=self._frame_size)
            thinned = [
                dataclasses.replace(each, parts=tuple(self._thinned_parts(each.parts)))
                for each in said
            ]
            return self._chat(thinned, name, variables)
        if kind == "captioned":
            return self._captioned(record, name, *place)
        if kind == "parts":
            return self._document(self._parts(_get(record, "parts")), name)
        if kind == "ids":
            ids = _ids(_get(record, "ids"), self.tokens)
            mask = _loss_mask(record.get("learn"), len(ids))
            return Example(ids=ids, loss_mask=mask, name=name)
        if kind == "text":
            return self._plain(record, name)
        return self._join(self._fields(record, self._fields_of(record, line)), name)

    def _join(self, pieces: Iterable[MaskedIds], name: str) -> Example:
        """Joins pieces between the beginning and the end of text."""
        first, last = self._ends(True)
        return Example.join([(first, False), *pieces, (last, True)], name=name)

    def _plain(self, record: Mapping[str, Any], name: str) -> Example:
        text = _get_text(record, "text")
        if not text or text.isspace():
            raise UserError("key 'text' is empty")
        first, last = self._ends(self.tokenizer.add_bos)
        # `Example.join` would take a tenth of the time of short texts.
        found = self._text(text)
        found[:0] = first  # in place: a list of all ids may be large
        found += last
        ids = np.asarray(found, np.int32)
        mask = np.ones(len(ids), bool)
        mask[: len(first)] = False
        return Example(ids=ids, loss_mask=mask, name=name)

    def _captioned(
        self, record: Mapping[str, Any], name: str, number: int, variant: int
    ) -> Example:
        config = self.format.captions
        size = self.format.tokens_per_frame
        if "frames" not in record and size is None:
            size = LWM_TOKENS_PER_FRAME
        vision = self._thinned(Vision.of(record, tokens_per_frame=size))
        composed = captions.compose(record, vision, config, share(config, number, variant))
        if messages := [each for each in composed if isinstance(each, Message)]:
            asked = "question" in record
            return self._chat(with_system(messages, record) if asked else messages, name)
        return self._document([each for each in composed if not isinstance(each, Message)], name)

    def _chat(
        self, messages: Sequence[Message], name: str, variables: Mapping[str, Any] = {}
    ) -> Example:
        ids, mask = chat_ids(
            messages,
            self.tokenizer,
            template=self.format.template,
            marks=self.marks,
            variables=variables,
        )
        return Example(ids=ids, loss_mask=mask, name=name)

    def _document(self, parts: Sequence[Part], name: str) -> Example:
        """Encodes texts, images and videos in order, with loss on all."""
        body: list[MaskedIds] = []
        for is_text, group in itertools.groupby(parts, lambda part: isinstance(part, str)):
            same: list[Any] = list(group)
            # Adjacent texts are one text.
            runs = [self._text("".join(same))] if is_text else [self._wrapped(v) for v in same]
            body += [(run, True) for run in runs]
        return self._join(body, name)

    def _ends(self, add_bos: bool) -> tuple[list[int], list[int]]:
        """Returns the ids before and after an example."""
        if self.format.add_bos is not None:
            add_bos = self.format.add_bos
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        return (
            [bos] if add_bos and bos is not None else [],
            [eos] if self.format.add_eos and eos is not None else [],
        )

    def _guess(self, record: Mapping[str, Any]) -> str:
        if self.format.fields or self.format.fields_from_example:
            return "fields"
        # A record of ids may keep its text.
        for kind in ("fields", "ids", "messages", "parts"):
            if kind in record:
                return _require_no_vision(kind, record)
        caption = self.format.captions.key
        if "vision" in record and (caption in record or "question" in record):
            return "captioned"
        if "text" in record:
            return _require_no_vision("text", record)
        if "conversations" in record:
            return _require_no_vision("messages", record)
        hint = next((hint for key, hint in _HINTS.items() if key in record), "")
        raise UserError(
            f"no key 'fields', 'messages', 'parts', 'text' or 'ids', nor {caption!r} beside "
            f"'vision'; it has {_keys(record)}{hint}"
        )

    def _fields_of(self, record: Mapping[str, Any], line: int) -> str:
        """Returns the fields of a record, such as `[question],answer`."""
        if self.format.fields:
            return self.format.fields
        key = self.format.fields_from_example or "fields"
        fields, index = _get(record, key), self.format.fields_index
        if isinstance(fields, list) and fields:
            if index is not None and not 0 <= index < len(fields):
                raise UserError(f"key {key!r} lists {len(fields)} fields; there is no {index}")
            # The random choice of LWM, so that its data give the same examples.
            fields = random.Random(line).choice(fields) if index is None else fields[index]
        if not isinstance(fields, str):
            raise UserError(
                f"key {key!r} should name fields, or list such names, not {reprlib.repr(fields)}"
            )
        return fields

    def _fields(self, record: Mapping[str, Any], fields: str) -> Iterator[MaskedIds]:
        prepend = self.format.prepend_text
        for field, is_target in parse_fields(fields):
            if field in (BOS, EOS):
                yield [self._special(field)], is_target
            else:
                for ids in self._joined(record, field, prepend):
                    yield ids, is_target
            prepend = ""

    def _special(self, field: str) -> int:
        token = self.tokenizer.bos_id if field == BOS else self.tokenizer.eos_id
        if token is None:
            raise UserError(f"the fields name {field}, which the tokenizer lacks")
        return token

    def _joined(
        self, record: Mapping[str, Any], field: str, prepend: str
    ) -> Iterator[Sequence[int] | np.ndarray]:
        """Yields the ids of `a+b`: adjacent texts as one text, and vision by itself."""
        texts: list[str] = []
        for key in field.split("+"):
            key = key.strip()
            if _is_vision(key, _get(record, key)):
                if texts:
                    yield self._text(prepend + self.format.subfield_separator.join(texts))
                yield self._vision(key, record)
                texts, prepend = [], ""
            else:
                texts.append(_get_text(record, key))
        if texts:
            yield self._text(prepend + self.format.subfield_separator.join(texts))

    def _text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=self.format.special_tokens)

    def _vision(self, key: str, record: Mapping[str, Any]) -> Int[np.ndarray, " n"]:
        """Returns the ids of the codes under a key of LWM's fields."""
        self._require_vision(key)
        if key == "vision" and isinstance(record.get("frames"), int | np.integer):
            return self._wrapped(Vision.of(record))
        size = self._frame_size
        codes = flat_codes(record[key], key)
        if len(codes) % size:
            raise UserError(
                f"key {key!r} has {len(codes)} codes, not a multiple of tokens_per_frame {size}"
            )
        return self._wrapped(Vision(codes=codes.reshape(-1, size), is_video=False), key)

    def _wrapped(self, vision: Vision, key: str = "vision") -> Int[np.ndarray, " n"]:
        """Returns the ids of an image or a video with its markers."""
        marks = self._require_vision(key)
        try:
            return marks.wrap(self._thinned(vision).codes)
        except UserError as error:
            raise UserError(f"key {key!r}: {error}") from None

    def _require_vision(self, key: str) -> VisionMarkers:
        if self.marks is None:
            raise UserError(f"key {key!r} holds vision codes, but the model reads no vision")
        return self.marks

    def _thinned(self, vision: Vision) -> Vision:
        """Keeps at most `max_n_frames` frames, evenly spaced."""
        most, count = self.format.max_n_frames, len(vision.codes)
        if not 0 < most < count:
            return vision
        kept = np.linspace(0, count - 1, most).astype(int)
        return dataclasses.replace(
            vision, codes=vision.codes[kept], is_video=most > 1, pixels=None, times=None
        )

    @property
    def _frame_size(self) -> int:
        return self.format.tokens_per_frame or LWM_TOKENS_PER_FRAME

    def _parts(self, value: Any) -> list[Part]:
        if not isinstance(value, list):
            raise UserError("key 'parts' should be a list of objects with a type")
        return self._thinned_parts(part_of(x, tokens_per_frame=self._frame_size) for x in value)

    def _thinned_parts(self, parts: Iterable[Part]) -> list[Part]:
        return [self._thinned(part) if isinstance(part, Vision) else part for part in parts]


def parse_fields(fields: str) -> list[tuple[str, bool]]:
    """Returns each field of `[a+b],<|eos|>,c`, and whether it is in the loss mask.

    Raises:
        UserError: A field is empty, a bracket has no partner, or a token is unknown.
    """
    parsed = []
    for field in map(str.strip, fields.split(",")):
        opens, closes = field.startswith("["), field.endswith("]")
        if opens != closes:
            raise UserError(
                f"fields {fields!r}: brackets enclose one field; write [a],[b] or [a+b]"
            )
        inner = field[1:-1].strip() if opens else field
        if not inner:
            raise UserError(f"fields {fields!r} have an empty name")
        if inner.startswith("<|") and inner not in (BOS, EOS):
            raise UserError(f"fields {fields!r}: unknown token {inner}; known: {BOS}, {EOS}")
        parsed.append((inner, not opens))
    return parsed


def _require_no_vision(kind: str, record: Mapping[str, Any]) -> str:
    """Returns the kind of a record, unless its image would be left out.

    Raises:
        UserError: The record has an image beside a text.
    """
    if kind in ("messages", "parts", "text") and "vision" in record:
        raise UserError(
            f"key 'vision' beside {kind!r} would be left out; put it among parts of content, name "
            f"fields, or say format {kind!r}"
        )
    return kind


def _ids(value: Any, tokens: TokenSpace) -> Int[np.ndarray, " n"]:
    ids = _flat(value)
    if ids is None or ids.dtype.kind not in "iu":
        raise UserError("key 'ids' should be one flat list of integers")
    if ids.min() < 0 or ids.max() >= tokens.size:
        place = int(np.argmax((ids < 0) | (ids >= tokens.size)))
        raise UserError(
            f"key 'ids': {ids[place]} at place {place} is not an id from 0 to {tokens.size - 1}"
        )
    # Always a copy: an array may be a view of much more.
    return ids.astype(np.int32)


def _loss_mask(value: Any, length: int) -> Bool[np.ndarray, " n"]:
    if value is None:
        return np.ones(length, bool)
    mask = _flat(value)
    if mask is None or mask.dtype.kind not in "iub" or mask.min() < 0 or mask.max() > 1:
        raise UserError("key 'learn' should be one flat list of 0 and 1, or false and true")
    if len(mask) != length:
        raise UserError(f"key 'learn' has {len(mask)} entries for {length} ids")
    return mask.astype(bool)


def _flat(value: Any) -> np.ndarray | None:
    """Returns a list as an array; None if it is empty, nested or not a list."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        return None
    return array if array.ndim == 1 and array.size else None


def _is_vision(key: str, value: Any) -> bool:
    return "vision" in key and not isinstance(value, str)


def _get(record: Mapping[str, Any], key: str) -> Any:
    if key not in record:
        raise UserError(f"key {key!r} is missing; it has {_keys(record)}")
    return record[key]


def _get_text(record: Mapping[str, Any], key: str) -> str:
    value = _get(record, key)
    if not isinstance(value, str):
        value = value.tolist() if isinstance(value, np.ndarray) else value
        hint = "; codes go under a key with 'vision' in it" if isinstance(value, list) else ""
        raise UserError(f"key {key!r} should hold text, not {reprlib.repr(value)}{hint}")
    return value


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, record)) or "no keys"
