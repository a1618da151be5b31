"""One record, a JSON object, to one example: LWM's fields, a chat, a text, or ids.

    {"fields": "[question],[vision],answer", "question": ..., "vision": [codes], "answer": ...}
    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    {"text": ...}
    {"ids": [ids of the model's token space], "learn": [0 or 1 for each; left out, all are learnt]}

A key whose name contains "vision" and whose value is a list holds the codes of an image or a
video, frame after frame; the marks around them are added here.
"""

import dataclasses
import random
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from lwm.data.example import Example, Piece
from lwm.data.format import ExampleFormat
from lwm.data.template import Message, render_chat
from lwm.data.tokenizer import Tokenizer
from lwm.errors import UserError
from lwm.tokens import TokenSpace

BOS, EOS = "<|bos|>", "<|eos|>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """Turns records into examples."""

    tokenizer: Tokenizer
    tokens: TokenSpace
    format: ExampleFormat = dataclasses.field(default_factory=ExampleFormat)

    def encode(self, record: Mapping[str, Any], *, name: str = "record", line: int = 0) -> Example:
        """Returns the example that a record stands for.

        Args:
            record: One JSON object; a key that holds null counts as missing.
            name: What messages call it.
            line: Its line in its file, from 0, which seeds what is drawn.

        Raises:
            UserError: The record is not what its format asks for; the key is named.
        """
        present = {key: value for key, value in record.items() if value is not None}
        try:
            return self._encode(present, name, line)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    def _encode(self, record: Mapping[str, Any], name: str, line: int) -> Example:
        kind = self.format.format
        if kind == "auto":
            kind = self._guess(record)
        if kind == "messages":
            ids, learn = chat_ids(
                _get(record, "messages"), self.tokenizer, template=self.format.template
            )
            return Example(ids=ids, learn=learn, name=name)
        if kind == "ids":
            ids = _ids(_get(record, "ids"), self.tokens)
            return Example(ids=ids, learn=_learn(record.get("learn"), len(ids)), name=name)
        if kind == "text":
            text = _get_text(record, "text")
            if not text or text.isspace():
                raise UserError("key 'text' is empty")
            first, last = self._ends(self.tokenizer.add_bos)
            # Not joined of pieces: of short texts that would be a tenth of the time.
            ids = np.asarray([*first, *self._text(text), *last], np.int32)
            learn = np.ones(len(ids), bool)
            learn[: len(first)] = False
            return Example(ids=ids, learn=learn, name=name)
        body = list(self._fields(record, self._fields_of(record, line)))
        first, last = self._ends(True)
        return Example.join([(first, False), *body, (last, True)], name=name)

    def _ends(self, add_bos: bool) -> tuple[list[int], list[int]]:
        """Returns what comes before an example and after it."""
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
        # An example as it stands may keep the text that it was.
        for kind in ("fields", "ids", "messages", "text"):
            if kind in record:
                return kind
        raise UserError(f"no key 'fields', 'messages', 'text' or 'ids'; it has {_keys(record)}")

    def _fields_of(self, record: Mapping[str, Any], line: int) -> str:
        """Returns the fields to take of a record, such as `[question],answer`."""
        if self.format.fields:
            return self.format.fields
        key = self.format.fields_from_example or "fields"
        fields, index = _get(record, key), self.format.fields_index
        if isinstance(fields, list) and fields:
            if index is not None and not 0 <= index < len(fields):
                raise UserError(f"key {key!r} lists {len(fields)} fields; there is no {index}")
            # As LWM draws, so that its data gives the same examples.
            fields = random.Random(line).choice(fields) if index is None else fields[index]
        if not isinstance(fields, str):
            raise UserError(
                f"key {key!r} should name fields, or list such names, not {reprlib.repr(fields)}"
            )
        return fields

    def _fields(self, record: Mapping[str, Any], fields: str) -> Iterator[Piece]:
        prepend = self.format.prepend_text
        for field, is_learnt in parse_fields(fields):
            if field in (BOS, EOS):
                yield [self._special(field)], is_learnt
            else:
                for ids in self._joined(record, field, prepend):
                    yield ids, is_learnt
            prepend = ""

    def _special(self, field: str) -> int:
        token = self.tokenizer.bos_id if field == BOS else self.tokenizer.eos_id
        if token is None:
            raise UserError(f"the fields ask for {field}, which the tokenizer lacks")
        return token

    def _joined(
        self, record: Mapping[str, Any], field: str, prepend: str
    ) -> Iterator[Sequence[int] | np.ndarray]:
        """Yields the ids of `a+b`: texts side by side are one text; vision stands by itself."""
        texts: list[str] = []
        for key in field.split("+"):
            key = key.strip()
            if _is_vision(key, _get(record, key)):
                if texts:
                    yield self._text(prepend + self.format.subfield_separator.join(texts))
                yield self._vision(key, record[key])
                texts, prepend = [], ""
            else:
                texts.append(_get_text(record, key))
        if texts:
            yield self._text(prepend + self.format.subfield_separator.join(texts))

    def _text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=self.format.special_tokens)

    def _vision(self, key: str, value: Any) -> Int[np.ndarray, " n"]:
        """Returns `<vision>`, each frame's codes and its end, `</vision>`."""
        frames = self._frames(key, value)
        most = self.format.max_n_frames
        if 0 < most < len(frames):
            frames = frames[np.linspace(0, len(frames) - 1, most).astype(int)]
        ended = np.full((len(frames), frames.shape[1] + 1), self.tokens.end_of_frame, np.int32)
        ended[:, :-1] = frames + self.tokens.text
        ended[-1, -1] = self.tokens.end_of_vision
        start, end = (self.tokenizer.encode(mark) for mark in ("<vision>", "</vision>"))
        return np.concatenate([start, ended.ravel(), end]).astype(np.int32)

    def _frames(self, key: str, value: Any) -> Int[np.ndarray, "frames codes"]:
        if not self.tokens.vision:
            raise UserError(f"key {key!r} holds vision codes, but the model reads no vision")
        try:
            codes = np.asarray(value)
        except ValueError:  # lists of unequal lengths
            codes = np.zeros((1, 1))
        if codes.size == 0:
            raise UserError(f"key {key!r} holds no frame")
        if codes.ndim != 1 or codes.dtype.kind not in "iu":
            raise UserError(f"key {key!r} should be one flat list of whole numbers")
        size = self.format.tokens_per_frame
        outside = np.flatnonzero((codes < 0) | (codes >= self.tokens.codes))
        if outside.size:
            raise UserError(
                f"key {key!r}: {codes[outside[0]]} at place {outside[0]} is not a code from 0 to "
                f"{self.tokens.codes - 1}; leave ends of frames out, they are added"
            )
        if len(codes) % size:
            raise UserError(
                f"key {key!r} has {len(codes)} codes, which is no multiple of "
                f"tokens_per_frame {size}"
            )
        return codes.reshape(-1, size)


def parse_fields(fields: str) -> list[tuple[str, bool]]:
    """Returns each field of `[a+b],<|eos|>,c`, and whether it is learnt.

    Raises:
        UserError: A field is empty, a bracket stands alone, or a token is unknown.
    """
    parsed = []
    for field in map(str.strip, fields.split(",")):
        opens, closes = field.startswith("["), field.endswith("]")
        if opens != closes:
            raise UserError(
                f"fields {fields!r}: brackets go round one field; write [a],[b] or [a+b]"
            )
        inner = field[1:-1].strip() if opens else field
        if not inner:
            raise UserError(f"fields {fields!r} have an empty name")
        if inner.startswith("<|") and inner not in (BOS, EOS):
            raise UserError(f"fields {fields!r}: unknown token {inner}; known: {BOS}, {EOS}")
        parsed.append((inner, not opens))
    return parsed


def chat_ids(
    messages: Any, tokenizer: Tokenizer, *, template: str | None = None
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Returns the ids of a conversation, and which are the assistant's answers or end these.

    An answer runs from where a prompt for it would end to the end of its turn, that included.

    Raises:
        UserError: The messages are malformed, none is the assistant's, or the template writes
            an answer in a conversation other than after the prompt for it.
    """
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise UserError("key 'messages' should be a list of objects with role and content")
    whole = _parts(messages, tokenizer, template, prompt=False)
    ids = np.asarray(tokenizer.encode_parts(whole), np.int32)
    place = _places(whole, ids)
    learn = np.zeros(len(ids), bool)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if turn == 0:
            raise UserError("key 'messages' starts with the assistant, who has nothing to answer")
        prompt = _parts(messages[:turn], tokenizer, template, prompt=True)
        part = _continued(prompt, whole, turn)
        start = _tokens_before(prompt, part, ids, place, tokenizer)
        answered = _parts(messages[: turn + 1], tokenizer, template, prompt=False)
        if _end(answered, part, tokenizer) is None or (end := _end(whole, part, tokenizer)) is None:
            raise UserError(f"the chat template does not end the turn of message {turn}")
        learn[start : place[end] + 1] = True
    if not learn.any():
        raise UserError("key 'messages' has no answer of the assistant to learn")
    return ids, learn


def _ids(value: Any, tokens: TokenSpace) -> Int[np.ndarray, " n"]:
    ids = _flat(value)
    if ids is None or ids.dtype.kind not in "iu":
        raise UserError("key 'ids' should be one flat list of whole numbers")
    if ids.min() < 0 or ids.max() >= tokens.size:
        place = int(np.argmax((ids < 0) | (ids >= tokens.size)))
        raise UserError(
            f"key 'ids': {ids[place]} at place {place} is not an id from 0 to {tokens.size - 1}"
        )
    # Always a copy: an array may be a view of much more.
    return ids.astype(np.int32)


def _learn(value: Any, length: int) -> Bool[np.ndarray, " n"]:
    if value is None:
        return np.ones(length, bool)
    learn = _flat(value)
    if learn is None or learn.dtype.kind not in "iub" or learn.min() < 0 or learn.max() > 1:
        raise UserError("key 'learn' should be one flat list of 0 and 1, or false and true")
    if len(learn) != length:
        raise UserError(f"key 'learn' has {len(learn)} entries for {length} ids")
    return learn.astype(bool)


def _flat(value: Any) -> np.ndarray | None:
    """Returns a list as an array; None if it is empty, nested, or none."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        return None
    return array if array.ndim == 1 and array.size else None


Parts = Sequence[str | int]


class _Recorder(Tokenizer):
    """Keeps the parts that it is asked to encode.

    With it `render_chat` stays the only place that knows templates, and the parts of a prompt
    can be had without cutting a long document into tokens once for each turn.
    """

    parts: Parts = ()

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        self.parts = [part for part in parts if part != ""]
        return []


def _parts(
    messages: Sequence[Message], tokenizer: Tokenizer, template: str | None, *, prompt: bool
) -> Parts:
    """Returns a conversation as text and special tokens."""
    own = {f.name: getattr(tokenizer, f.name) for f in dataclasses.fields(tokenizer)}
    recorder = _Recorder(**own)
    render_chat(messages, recorder, template=template, add_generation_prompt=prompt)
    return recorder.parts


def _places(parts: Parts, ids: Int[np.ndarray, " n"]) -> dict[int, int]:
    """Returns at which token each part that is an id stands: text never yields such an id."""
    given = {number: part for number, part in enumerate(parts) if isinstance(part, int)}
    found = np.flatnonzero(np.isin(ids, list(given.values())))
    assert ids[found].tolist() == list(given.values())
    return dict(zip(given, found.tolist(), strict=True))


def _continued(prompt: Parts, whole: Parts, turn: int) -> int:
    """Returns the part of the conversation in which an answer starts."""
    if not prompt:
        return 0
    *before, last = prompt
    if list(whole[: len(before)]) == before and len(whole) > len(before):
        there = whole[len(before)]
        if isinstance(last, str) and isinstance(there, str) and there.startswith(last):
            return len(before)
        if there == last:
            return len(prompt)
    raise UserError(
        f"the chat template does not write message {turn} after the prompt for it; "
        "give one that does, or only the last answer's turns"
    )


def _tokens_before(
    prompt: Parts,
    part: int,
    ids: Int[np.ndarray, " n"],
    place: dict[int, int],
    tokenizer: Tokenizer,
) -> int:
    """Counts the tokens before an answer that starts in a part.

    A token that is half prompt, half answer counts as the answer's.
    """
    context = [i for i in prompt[max(0, part - 1) : part] if isinstance(i, int)]
    first = place[part - 1] + 1 if context else 0
    lead = tokenizer.encode_parts([*context, *prompt[part:]])[len(context) :]
    there = ids[first : first + len(lead)]
    same = there == np.asarray(lead[: len(there)], np.int32)
    return first + (int(np.argmin(same)) if not same.all() else len(there))


def _end(parts: Parts, start: int, tokenizer: Tokenizer) -> int | None:
    """Returns the first part from `start` on that ends a turn."""
    ends = (n for n, part in enumerate(parts) if n >= start and part in tokenizer.eos_ids)
    return next(ends, None)


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
