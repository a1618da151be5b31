"""Opens data sets: files as records, and records or shards as training examples."""

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lwm.convert.open import open_tokens
from lwm.data.books import BOOKS, fetch_books
from lwm.data.copies import COPIES, Copies, CopySet
from lwm.data.example import Example
from lwm.data.fields import RecordEncoder
from lwm.data.format import ExampleFormat
from lwm.data.media.summary import SUMMARY as MEDIA_SUMMARY, MediaSummary
from lwm.data.media.world import is_world
from lwm.data.paths import Warn
from lwm.data.recalls import RECALLS, Recalls, RecallSet
from lwm.data.shards import is_shards, open_shards
from lwm.data.sources import Concatenation, Source, files_of, open_source
from lwm.data.stream import Examples
from lwm.errors import UserError, several
from lwm.files import ASSETS, within
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace
from lwm.vqgan.config import CodebookInfo
from lwm.vqgan.model import VQGAN
from lwm.vqgan.tokenizer import vqgan_fingerprint

_SHIPPED = "shipped:"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Examples by number, encoded on access; each variant of a record is an example of its own."""

    source: Source
    encoder: RecordEncoder

    def __len__(self) -> int:
        return len(self.source) * self.encoder.format.captions.variants

    def __getitem__(self, number: int, /) -> Example:
        """Reads one example.

        Raises:
            UserError: The record is bad; file, line and reason are named.
        """
        variant, number = divmod(within(number, len(self)), len(self.source))
        record = self.source[number]
        return self.encoder.encode(
            record.value, name=record.name, line=record.line, number=number, variant=variant
        )

    def files(self) -> list[Path]:
        """Returns the files of the records."""
        return files_of(self.source)


def open_set(
    files: Sequence[str],
    format: ExampleFormat,
    tokenizer: Tokenizer,
    tokens: TokenSpace,
    *,
    frame: int | None = None,
    warn: Warn = lambda text: None,
) -> Examples:
    """Opens files as numbered examples.

    Args:
        files: See `open_records`; or one folder of tokenized shards.
        frame: Codes of a frame where neither the record nor the format says it; None: as in LWM.
        warn: See `open_source`.

    Raises:
        UserError: A file is missing, empty, or was tokenized for another model.
    """
    files = several(files)
    if len(files) == 1 and is_shards(Path(files[0])):
        if format != ExampleFormat():
            raise UserError(
                f"{files[0]}: its records were encoded when it was tokenized; leave format out"
            )
        return open_shards(Path(files[0]), tokens=tokens, tokenizer=tokenizer)
    if len(files) == 1 and files[0].startswith(COPIES):
        return Copies.of(CopySet.parse(files[0]), tokenizer, tokens)
    for name, made_by in _codebooks(files, warn):
        if tokens.vision and made_by.codes != tokens.codes:
            raise UserError(
                f"the codes of {name} are of a codebook of {made_by.codes}, but the model has "
                f"{tokens.codes} codes; tokenize again with the model's VQGAN"
            )
    encoder = RecordEncoder(tokenizer=tokenizer, tokens=tokens, format=format.framed(frame))
    return Corpus(open_records(files, warn=warn), encoder)


def open_records(files: Sequence[str], *, warn: Warn = lambda text: None) -> Source:
    """Opens files as records.

    Args:
        files: Paths and patterns as for `open_source`; `books:train` and `books:held-out`, which
            are fetched; `shipped:` and the name or pattern of texts that come with the package;
            `shipped:clips`, 64 captioned clips; sets of the world, see `WorldSet.parse`; and
            `recalls:train` and `recalls:held-out`, see `lwm.data.recalls`.
        warn: See `open_source`.

    Raises:
        UserError: A file is missing or empty, or a folder of token shards is among them.
    """
    files = several(files)
    sources: list[Source] = []
    for is_recalls, names in itertools.groupby(files, lambda file: file.startswith(RECALLS)):
        if is_recalls:
            sources += [Recalls(RecallSet.parse(name)) for name in names]
        else:
            paths = (path for name in names for path in _found(name, warn))
            sources.append(open_source(*paths, warn=warn))
    source = sources[0] if len(sources) == 1 else Concatenation(sources)
    if not len(source):
        raise UserError(f"{', '.join(files)}: no record, only blank lines")
    return source


def texts(files: Sequence[str], *, most: int, warn: Warn = lambda text: None) -> Iterator[str]:
    """Yields the texts in records, under any key, until `most` characters; skips bad records."""
    if not (files := [file for file in several(files) if not file.startswith(COPIES)]):
        return
    source = open_records(files, warn=warn)
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


def require_codes_of(
    files: Sequence[str], vqgan: Callable[[], VQGAN], *, warn: Warn = lambda text: None
) -> None:
    """Refuses media shards whose codes come from another VQGAN, or from frames of another size.

    Other files are not checked: they do not name their VQGAN.

    Args:
        files: See `open_records`.
        vqgan: Returns the VQGAN; called only if there are such shards.
        warn: See `open_source`.

    Raises:
        UserError: The folder, or the set of the world, is named.
    """
    for name, made_by in _codebooks(files, warn):
        if made_by.fingerprint != vqgan_fingerprint(vqgan()):
            remedy = "write vqgan= and its path into the name" if is_world(name) else ""
            raise UserError(
                f"the codes of {name} were made by another VQGAN, {made_by.source}; give that one, "
                f"or {remedy or 'tokenize again'}"
            )
        config = vqgan().config
        if made_by.tokens_per_frame != config.tokens_per_frame:
            raise UserError(
                f"the codes of {name} are {made_by.tokens_per_frame} a frame of "
                f"{made_by.resolution} px, but the VQGAN makes {config.tokens_per_frame} of "
                f"{config.resolution} px; tokenize again without --resolution"
            )


def _codebooks(files: Sequence[str], warn: Warn) -> Iterator[tuple[str, CodebookInfo]]:
    """Yields the names of media shards and sets of the world, and what made their codes."""
    for file in several(files):
        if file.startswith((RECALLS, COPIES)):
            continue
        for path in map(Path, _found(file, warn)):
            if (path / MEDIA_SUMMARY).is_file():
                name = file if is_world(file) else str(path)
                yield name, MediaSummary.read(path).codebook


def open_data(
    files: Sequence[str],
    *,
    model: str | None,
    tokenizer: Path | None,
    codes: int,
    warn: Warn = lambda text: None,
) -> tuple[Source, Tokenizer, TokenSpace]:
    """Opens records, and a tokenizer and token space to encode them.

    Args:
        files: See `open_records`.
        model: The model to be trained; or
        tokenizer: a tokenizer's folder or file, with
        codes: the number of entries of the vision codebook; 0 is no vision.
        warn: See `open_source`.

    Raises:
        UserError: A file is missing, or not exactly one of model and tokenizer is given.
    """
    if not files:
        raise UserError("give the files to read")
    if (model is None) == (tokenizer is None):
        raise UserError("give either --model or --tokenizer")
    source = open_records(files, warn=warn)
    if tokenizer is not None:
        return source, *tokenizer_alone(tokenizer, codes)
    assert model is not None
    return source, *open_tokens(model)


def tokenizer_alone(path: Path, codes: int) -> tuple[Tokenizer, TokenSpace]:
    """Opens a tokenizer; returns it with the token space for a codebook of `codes` entries."""
    if codes < 0:
        raise UserError(f"codes {codes} must be 0 (no vision) or above")
    tokenizer = Tokenizer.open(path)
    return tokenizer, TokenSpace.of(tokenizer.vocab_size, codes)


def _found(file: str, warn: Warn) -> list[str | Path]:
    """Returns the paths of one entry, for `open_source`."""
    if file.startswith(COPIES):
        raise UserError(f"{file} has ids and no records; give it as a data set of its own")
    if is_world(file):
        from lwm.data.tokenized import tokenized_world

        return [tokenized_world(file, warn=warn)]
    if file.startswith(_SHIPPED):
        return _shipped(file.removeprefix(_SHIPPED))
    if not file.startswith(BOOKS):
        return [file]
    part = file.removeprefix(BOOKS)
    if part not in ("train", "held-out"):
        raise UserError(f"{file}: there are books:train and books:held-out")
    return [fetch_books() / part]


def _shipped(pattern: str) -> list[str | Path]:
    if pattern == "clips":
        from lwm.data.tokenized import tokenized_clips

        return [tokenized_clips()]
    there = {path.relative_to(ASSETS).as_posix(): path for path in ASSETS.rglob("*.txt")}
    # Only the name is a pattern: the path of the package may contain brackets.
    matched = sorted(fnmatch.filter(there, pattern))
    if not matched:
        known = ", ".join(f"{_SHIPPED}{name}" for name in [*sorted(there), "clips"])
        raise UserError(f"{_SHIPPED}{pattern} does not exist; there are {known}")
    return [there[name] for name in matched]


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
