"""Tokenized examples in ArrayRecord files, so that training does not tokenize text.

tokens-00000-of-00002.arrayrecord   one example per record: msgpack of ids, loss mask and name
tokens-00001-of-00002.arrayrecord
shards.json                         summary; written last: it shows that all shards are complete
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import msgpack
import numpy as np

from lwm.data.example import Example
from lwm.errors import UserError
from lwm.files import (
    named_file,
    read_versioned,
    reading,
    reason_of,
    require_package,
    require_size,
    within,
    write_versioned,
)
from lwm.fingerprint import Fingerprints
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

SUMMARY = "shards.json"
VERSION = 1
SHOWN = 20
"""Number of reasons that are kept of bad records."""

# Tokenizers that split words, numbers, spaces or scripts by other rules give other ids.
_PROBE = (
    "The quick brown fox; it's WE'LL they'd I'M don’t\n\n\tdef f(x_1, y=2.50):\r\n        return"
    " x**2  # 1234567890 3.14e-10\x00 <s></s><|endoftext|>  naïve nai\u0308ve Straße ĳ ﬁ Ａ１ ½ "
    "Привет, мир! 你好，世界。日本語のテキスト 한국어 العربية हिन्दी ไทย עברית \u00a0\u200b\u2028"
    "👩‍👩‍👧 🇩🇪 \U0001f98b antidisestablishmentarianism camelCaseWords SHOUTING   trailing   "
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Figures of some examples."""

    examples: int = 0
    text: int = 0
    """Tokens of text."""
    vision: int = 0
    learnt_text: int = 0
    """Text tokens in the loss mask; the name is the key in `shards.json`."""
    learnt_vision: int = 0
    longest: int = 0
    """Tokens of the longest example."""
    bad: int = 0
    """Records that could not be read; they are left out."""

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.text + self.vision

    @property
    def bad_share(self) -> float:
        """Share of bad records among all."""
        return self.bad / max(1, self.bad + self.examples)

    @classmethod
    def of(cls, example: Example, tokens: TokenSpace) -> "Counts":
        """Counts the tokens of one example."""
        is_vision = example.ids >= tokens.text
        vision, targets = int(is_vision.sum()), int(example.loss_mask.sum())
        vision_targets = int((example.loss_mask & is_vision).sum()) if vision else 0
        return cls(
            examples=1,
            text=len(example) - vision,
            vision=vision,
            learnt_text=targets - vision_targets,
            learnt_vision=vision_targets,
            longest=len(example),
        )

    def __add__(self, other: "Counts") -> "Counts":
        mine, theirs = vars(self), vars(other)
        total = {name: count + theirs[name] for name, count in mine.items()}
        return Counts(**total | {"longest": max(self.longest, other.longest)})


class Shard(NamedTuple):
    """One file."""

    name: str
    size: int
    """Bytes."""
    examples: int
    content: str = ""
    """See `content_of`; empty if an earlier version wrote it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of `shards.json`: a description of a folder of shards."""

    tokens: TokenSpace
    tokenizer: str
    """Fingerprint of the tokenizer."""
    input: dict[str, Any]
    """Fingerprints of the input and settings of the shards."""
    counts: Counts
    reasons: tuple[str, ...]
    """Why the first bad records are bad."""
    shards: tuple[Shard, ...]
    files: Fingerprints = dataclasses.field(default_factory=dict)
    """Fingerprints of the files of the input."""

    @classmethod
    def read(cls, folder: Path) -> "Summary":
        """Reads the file.

        Raises:
            UserError: It is missing, damaged, or of an unknown version.
        """
        file = folder / SUMMARY
        if not file.is_file():
            raise UserError(f"{folder} holds no complete set of shards: there is no {SUMMARY}")
        value = read_versioned(file, VERSION)
        with reading(file):
            value |= {
                "tokens": TokenSpace(**value["tokens"]),
                "counts": Counts(**value["counts"]),
                "reasons": tuple(value["reasons"]),
                "shards": tuple(Shard(*shard) for shard in value["shards"]),
            }
            return cls(**value)

    def write(self, file: Path) -> None:
        """Writes the file for `read`."""
        write_versioned(dataclasses.asdict(self), file, VERSION)

    def rows(self) -> list[tuple[str, str]]:
        """Returns names and values for a table."""
        counts, total = self.counts, max(1, self.counts.tokens)
        size = sum(shard.size for shard in self.shards)
        return [
            ("examples", f"{counts.examples:,}"),
            ("bad lines", f"{counts.bad:,}"),
            ("tokens", f"{counts.tokens:,}  longest {counts.longest:,}"),
            ("text", f"{counts.text:,}  targets {counts.learnt_text:,}"),
            ("vision", f"{counts.vision:,}  targets {counts.learnt_vision:,}"),
            ("shards", f"{len(self.shards):,}"),
            ("bytes", f"{size:,}  {size / total:.2f} a token"),
        ]


class TokenShards:
    """Examples of some shards, by number; thread-safe and picklable."""

    def __init__(self, files: Path | Sequence[Path]) -> None:
        """Opens a folder of shards, or some of its files.

        Raises:
            UserError: A file is missing, or its size is not the one written.
        """
        library = require_package("array_record.python.array_record_data_source", "ArrayRecord")
        parts = list(_parts(files))
        # Given the number of its examples, the library opens a file only when it is read.
        self._files = [str(part.filename) for part in parts]
        self._ends = list(itertools.accumulate(part.take for part in parts))
        self._records = library.ArrayRecordDataSource(parts) if parts else ()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def files(self) -> list[Path]:
        """Returns the shards that hold examples."""
        return [Path(file) for file in self._files]

    def __getitem__(self, index: SupportsIndex, /) -> Example:
        """Reads one example.

        Raises:
            UserError: The file is damaged; it is named.
        """
        number = within(index, len(self))
        try:
            return read_ids(self._records[number])
        except Exception as error:  # the library raises what it likes
            file = self._files[bisect.bisect_right(self._ends, number)]
            raise UserError(f"{file} cannot be read: {reason_of(error)}") from None


def read_ids(record: bytes) -> Example:
    """Decodes a record of a shard; the ids of the example are read-only."""
    fields = msgpack.unpackb(record, unicode_errors="surrogatepass")
    ids = np.frombuffer(fields["ids"], "<i4").astype(np.int32, copy=False)
    bits = fields.get("learn")
    if bits is None:
        mask = np.ones(len(ids), bool)
    else:
        mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(ids)).view(bool)
    return Example(ids=ids, loss_mask=mask, name=fields["name"])


def write_ids(example: Example) -> bytes:
    """Encodes an example as a record for `read_ids`."""
    fields = {"ids": example.ids.astype("<i4").tobytes(), "name": example.name}
    if not example.loss_mask.all():
        fields["learn"] = np.packbits(example.loss_mask).tobytes()
    packed = msgpack.packb(fields, unicode_errors="surrogatepass")
    assert packed is not None
    return packed


def is_shards(path: Path) -> bool:
    """Returns whether a folder holds a complete set of shards."""
    return (Path(path) / SUMMARY).is_file()


def open_shards(folder: Path, *, tokens: TokenSpace, tokenizer: Tokenizer | None) -> TokenShards:
    """Opens a folder of shards for a model.

    Shards of text alone fit every model with the same tokenizer, with or without vision, and with
    any padding of its vocabulary.

    Args:
        folder: A folder of `write_shards`.
        tokenizer: The model's tokenizer; None skips its check.

    Raises:
        UserError: The shards were made for other tokens; the difference is named.
    """
    summary = Summary.read(folder)
    there = summary.tokens
    wanted = f"{folder} was tokenized for another model"
    if tokenizer is not None and tokenizer_fingerprint(tokenizer) != summary.tokenizer:
        raise UserError(f"{wanted}: its tokenizer is not the model's; tokenize again for this one")
    differing = [
        f"{name} {mine} there, {theirs} in the model"
        for name, mine, theirs in (
            ("text ids", there.text, tokens.text),
            ("vision ids", there.vision, tokens.vision),
            ("vision codes", there.codes, tokens.codes),
        )
        if mine != theirs
    ]
    if not summary.counts.vision:
        padded = tokenizer is not None and there.text < tokens.text
        differing = differing[:1] if there.text != tokens.text and not padded else []
    if differing:
        raise UserError(f"{wanted}: {'; '.join(differing)}; tokenize again for this one")
    return TokenShards(folder)


@functools.lru_cache(maxsize=8)
def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Returns a SHA-256 fingerprint of a tokenizer, independent of the form it is stored in.

    It covers the spelling of each id, the special ids, and the ids of a probe text with many kinds
    of words, numbers, spaces and scripts, followed by the whole vocabulary.
    """
    spelt = [tokenizer.backend.spell(token) for token in range(tokenizer.vocab_size)]
    special = sorted(tokenizer.backend.special.items())
    probe = _PROBE + b"".join(spelt).decode("utf-8", errors="replace")
    cut = tokenizer.encode(probe, special=False)
    digest = hashlib.sha256(b"".join(len(each).to_bytes(4, "little") + each for each in spelt))
    digest.update(json.dumps([special, tokenizer.bos_id, tokenizer.eos_id]).encode())
    digest.update(np.asarray(cut, "<i4").tobytes())
    return digest.hexdigest()


class _Part(NamedTuple):
    """A shard, as the ArrayRecord library takes it."""

    filename: str
    take: int
    skip: int = 0
    examples_in_shard: int = 0


def _parts(files: Path | Sequence[Path]) -> Iterable[_Part]:
    if isinstance(files, Path):
        folder, shards = files, Summary.read(files).shards
        files = [named_file(folder, shard.name, folder / SUMMARY) for shard in shards]
    summaries: dict[Path, dict[str, Shard]] = {}
    for file in files:
        if file.parent not in summaries:
            known = Summary.read(file.parent).shards
            summaries[file.parent] = {shard.name: shard for shard in known}
        shard = summaries[file.parent].get(file.name)
        if shard is None:
            raise UserError(f"{file} is not among the shards of {file.parent / SUMMARY}")
        require_size(file, shard.size)
        if shard.examples:
            yield _Part(str(file), shard.examples)
