"""Segments of documents, and the prompts in which their tokens are scored."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from lwm.errors import UserError
from lwm.eval.needle.haystack import BOOK, JSONL, read_documents
from lwm.eval.perplexity.config import BLOCKS, PerplexityConfig
from lwm.eval.scoring import ScoreRequest
from lwm.fingerprint import named
from lwm.tokenizer.tokenizer import Tokenizer

_WHAT = "document"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Tokens of a document that are scored as one context."""

    document: str
    """The document's name."""
    number: int
    """Segments of the document before this one."""
    ids: Sequence[int]
    """The beginning-of-text token if the model has one, then the text."""
    starts: int
    """Beginning-of-text tokens, 0 or 1."""

    def whole(self) -> ScoreRequest:
        """Returns all of it, as one prompt."""
        return ScoreRequest(ids=self.ids, first=1)

    def windows(self, context: int, targets: int) -> Iterator[ScoreRequest]:
        """Yields prompts in which the last `targets` tokens have at most `context` before them.

        The targets are scored in blocks, so that not each of them needs a prompt of its own. The
        last of a block has exactly `context` tokens before it, the beginning-of-text token
        included.
        """
        block = max(1, context // BLOCKS)
        first = list(self.ids[: self.starts])
        for start in range(len(self.ids) - targets, len(self.ids), block):
            end = min(start + block, len(self.ids))
            ids = [*first, *self.ids[end - 1 - context + len(first) : end]]
            yield ScoreRequest(ids=ids, first=len(ids) - (end - start))


def read_segments(
    files: Sequence[Path], tokenizer: Tokenizer, config: PerplexityConfig
) -> list[Segment]:
    """Reads as many segments as asked for, if the documents have them, from all documents alike.

    Args:
        files: Text files, each a document; JSONL files with a document per line; folders of
            .txt files, each a document. Empty: the book in the package.
        tokenizer: The model's.
        config: Length and number of segments.

    Raises:
        UserError: A file cannot be read, or no document is as long as a segment.
    """
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    first = [] if bos is None else [bos]
    size = config.length - len(first)
    longest, documents = 0, []
    for name, text in _documents(files):
        ids = tokenizer.encode(text, special=False)
        longest = max(longest, len(ids) + len(first))
        if len(ids) >= size:
            documents.append((name, ids))
        if len(documents) == config.segments:
            break
    if not documents:
        raise UserError(
            f"the longest document has {longest:,} tokens, fewer than a segment of "
            f"{config.length:,}; lower length, or give longer documents"
        )
    found = [
        [
            Segment(
                document=name,
                number=number,
                ids=[*first, *ids[number * size : (number + 1) * size]],
                starts=len(first),
            )
            for number in range(len(ids) // size)
        ]
        for name, ids in documents
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*found))
    return [segment for segment in turns if segment is not None][: config.segments]


def text_files(files: Sequence[Path]) -> dict[str, Path]:
    """Returns the files that documents are read from by name, those of folders included."""
    inside = (sorted(file.glob("*.txt")) if file.is_dir() else [file] for file in files)
    return named(file for each in inside for file in each)


def require_readable(files: Sequence[Path]) -> None:
    """Refuses files that cannot be read, before a model is loaded.

    Raises:
        UserError: See `lwm.eval.needle.haystack.read_documents`.
    """
    for file in files:
        next(read_documents(file, what=_WHAT), None)


def _documents(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yields the names and texts of documents."""
    if not files:
        yield BOOK, "".join(read_documents(None)).strip()
    for name, file in text_files(files).items():
        pieces = read_documents(file, what=_WHAT)
        if file.suffix.lower() in JSONL:
            yield from ((f"{name}:{line}", text.strip()) for line, text in enumerate(pieces, 1))
        else:
            yield name, "".join(pieces).strip()
