"""Chunks of documents: about equally many tokens each, cut after sentences."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator

from lwm.data.sources import Source
from lwm.errors import UserError
from lwm.eval.needle.haystack import Haystack
from lwm.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """A part of a document that a model is asked about."""

    document: int
    name: str
    """Name of the document."""
    number: int
    """Place of the chunk in the document, from 0."""
    text: str
    length: int
    """Tokens of the prompt about it and of the answer, at most."""

    @property
    def sha256(self) -> str:
        """The first digits of the SHA-256 of its text."""
        return hashlib.sha256(self.text.encode(errors="surrogatepass")).hexdigest()[:16]


def read_chunks(
    source: Source,
    tokenizer: Tokenizer,
    *,
    tokens: int,
    around: int,
    most: int | None = None,
) -> list[Chunk]:
    """Returns the chunks of all documents, in order.

    Args:
        source: Texts: each record is a document.
        tokenizer: Counts tokens.
        tokens: Tokens of a chunk, at most.
        around: Tokens of the prompt and of the answer beside a chunk.
        most: Number of chunks, at most.

    Raises:
        UserError: A record cannot be read, or has no text.
    """
    found = itertools.islice(_chunks(source, tokenizer, tokens, around), most)
    if not (chunks := list(found)):
        raise UserError("the files hold no text, only blank lines; give others")
    return chunks


def _chunks(source: Source, tokenizer: Tokenizer, tokens: int, around: int) -> Iterator[Chunk]:
    for document in range(len(source)):
        record = source[document]
        text = record.value.get("text")
        if not isinstance(text, str):
            raise UserError(f"{record.name}: the record has no field `text`; give texts")
        for number, part in enumerate(cut(text, tokenizer, tokens)):
            yield Chunk(
                document=document,
                name=record.name,
                number=number,
                text=part,
                length=len(tokenizer.encode(part, special=False)) + around,
            )


def cut(text: str, tokenizer: Tokenizer, tokens: int) -> Iterator[str]:
    """Yields the parts of a text, with at most so many tokens each, without space around them."""
    if not text.strip():
        return
    whole = Haystack.read("text", [text], tokenizer, most=len(text))
    start = 0
    while start < len(text):
        before = whole.tokens_before(start)
        if whole.num_tokens - before <= tokens:
            end = len(text)
        else:
            end = whole.sentence_at(before + tokens, start=start)
        if end <= start:  # no place to cut, not even after a word
            end = max(start + 1, whole.place_after(before + tokens))
        if part := text[start:end].strip():
            yield part
        start = end
