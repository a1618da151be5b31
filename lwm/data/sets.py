"""Data sets as a run names them, opened: records that become examples, or shards of tokens."""

from collections.abc import Iterator
from pathlib import Path

from lwm.data.corpus import Corpus
from lwm.data.fields import Encoder
from lwm.data.format import ExampleFormat
from lwm.data.shards import is_shards, open_shards
from lwm.data.sources import Source, open_source
from lwm.data.stream import Examples
from lwm.data.tokenizer import Tokenizer
from lwm.errors import UserError
from lwm.tokens import TokenSpace

_BOOKS = "books:"


def open_set(
    files: tuple[str, ...], format: ExampleFormat, tokenizer: Tokenizer, tokens: TokenSpace
) -> Examples:
    """Opens files as numbered examples.

    Args:
        files: Paths and patterns as for `open_source`, `books:train` or `books:held-out`; or one
            folder of tokenized shards.
        format: How records become examples.
        tokenizer: That of the model.
        tokens: Those of the model.

    Raises:
        UserError: Something is missing, empty, or was tokenized for another model.
    """
    if len(files) == 1 and is_shards(Path(files[0])):
        return open_shards(Path(files[0]), tokens=tokens, tokenizer=tokenizer)
    encoder = Encoder(tokenizer=tokenizer, tokens=tokens, format=format)
    return Corpus(open_records(files), encoder)


def open_records(files: tuple[str, ...]) -> Source:
    """Opens files as records.

    Raises:
        UserError: Something is missing or empty, or shards of tokens are among the files.
    """
    shards = [file for file in files if is_shards(Path(file))]
    if shards:
        raise UserError(
            f"{shards[0]} holds tokens, not records; make it a data set of its own, and give the "
            "tokenizer that it was made with"
        )
    source = open_source(*map(_found, files))
    if not len(source):
        raise UserError(f"{', '.join(files)}: no record, only blank lines")
    return source


def texts(files: tuple[str, ...], *, most: int) -> Iterator[str]:
    """Yields the texts in records, whatever keys they stand under, until `most` characters.

    Records that cannot be read are passed over.
    """
    source = open_records(files)
    for number in range(len(source)):
        try:
            record = source[number].value
        except UserError:
            continue
        for text in _strings(record):
            yield text
            most -= len(text)
        if most <= 0:
            return


def _found(file: str) -> str | Path:
    if not file.startswith(_BOOKS):
        return file
    from lwm.data.books import fetch_books

    part = file.removeprefix(_BOOKS)
    if part not in ("train", "held-out"):
        raise UserError(f"{file}: there are books:train and books:held-out")
    return fetch_books() / part


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
