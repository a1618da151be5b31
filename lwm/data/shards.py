"""Examples already encoded, in ArrayRecord files, so that training cuts no text into tokens.

tokens-00000-of-00002.arrayrecord   an example a record: msgpack of ids, learnt bits and a name
tokens-00001-of-00002.arrayrecord
shards.json                         what they are; written last, so that with it all is whole
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
    read_versioned,
    reading,
    reason_of,
    require_package,
    require_size,
    within,
    write_versioned,
)
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

SUMMARY = "shards.json"
VERSION = 1
SHOWN = 20
"""Reasons that are kept, of the records that could not be read."""

# Cut differently by tokenizers that split words, numbers, spaces or scripts by other rules.
_PROBE = (
    "The quick brown fox; it's WE'LL they'd I'M don’t\n\n\tdef f(x_1, y=2.50):\r\n        return"
    " x**2  # 1234567890 3.14e-10\x00 <s></s><|endoftext|>  naïve nai\u0308ve Straße ĳ ﬁ Ａ１ ½ "
    "Привет, мир! 你好，世界。日本語のテキスト 한국어 العربية हिन्दी ไทย עברית \u00a0\u200b\u2028"
    "👩‍👩‍👧 🇩🇪 \U0001f98b antidisestablishmentarianism camelCaseWords SHOUTING   trailing   "
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What some examples hold."""

    examples: int = 0
    text: int = 0
    """Tokens of text."""
    vision: int = 0
    learnt_text: int = 0
    learnt_vision: int = 0
    longest: int = 0
    """Tokens of the longest example."""
    bad: int = 0
    """Records that could not be read, and are in no shard."""

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.text + self.vision

    @property
    def bad_share(self) -> float:
        """Bad records among all."""
        return self.bad / max(1, self.bad + self.examples)

    @classmethod
    def of(cls, example: Example, tokens: TokenSpace) -> "Counts":
        """Counts the tokens of one example."""
        is_vision = example.ids >= tokens.text
        vision, learnt = int(is_vision.sum()), int(example.learn.sum())
        learnt_vision = int((example.learn & is_vision).sum()) if vision else 0
        return cls(
            examples=1,
            text=len(example) - vision,
            vision=vision,
            learnt_text=learnt - learnt_vision,
            learnt_vision=learnt_vision,
            longest=len(example),
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            examples=self.examples + other.examples,
            text=self.text + other.text,
            vision=self.vision + other.vision,
            learnt_text=self.learnt_text + other.learnt_text,
            learnt_vision=self.learnt_vision + other.learnt_vision,
            longest=max(self.longest, other.longest),
            bad=self.bad + other.bad,
        )


class Shard(NamedTuple):
    """One file."""

    name: str
    size: int
    """Bytes."""
    examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a folder of shards holds: its `shards.json`."""

    tokens: TokenSpace
    tokenizer: str
    """The fingerprint of the tokenizer that cut the texts."""
    input: dict[str, Any]
    """What the shards were made from and how, to tell another input."""
    counts: Counts
    reasons: tuple[str, ...]
    """Why the first bad records are bad."""
    shards: tuple[Shard, ...]

    @classmethod
    def read(cls, folder: Path) -> "Summary":
        """Reads the file.

        Raises:
            UserError: It is not there, is damaged, or is of a version that is not known.
        """
        file = folder / SUMMARY
        if not file.is_file():
            raise UserError(f"{folder} holds no whole set of shards: there is no {SUMMARY}")
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
        """Writes the file, which `read` reads."""
        write_versioned(dataclasses.asdict(self), file, VERSION)

    def rows(self) -> list[tuple[str, str]]:
        """Returns names and values for a table."""
        counts, total = self.counts, max(1, self.counts.tokens)
        size = sum(shard.size for shard in self.shards)
        return [
            ("examples", f"{counts.examples:,}"),
            ("bad lines", f"{counts.bad:,}"),
            ("tokens", f"{counts.tokens:,}  longest {counts.longest:,}"),
            ("text", f"{counts.text:,}  learnt {counts.learnt_text:,}"),
            ("vision", f"{counts.vision:,}  learnt {counts.learnt_vision:,}"),
            ("shards", f"{len(self.shards):,}"),
            ("bytes", f"{size:,}  {size / total:.2f} a token"),
        ]


class TokenShards:
    """The examples of some shards, by number; several threads may read, and it can be pickled."""

    def __init__(self, files: Path | Sequence[Path]) -> None:
        """Opens a folder of shards, or some of its files.

        Raises:
            UserError: Something is missing, or has not the size that it was written with.
        """
        library = require_package("array_record.python.array_record_data_source", "ArrayRecord")
        parts = list(_parts(files))
        # With its examples counted, a file is opened only when it is read.
        self._files = [str(part.filename) for part in parts]
        self._ends = list(itertools.accumulate(part.take for part in parts))
        self._records = library.ArrayRecordDataSource(parts) if parts else ()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

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
    """Returns the example that a record of a shard holds; its ids cannot be written to."""
    fields = msgpack.unpackb(record, unicode_errors="surrogatepass")
    ids = np.frombuffer(fields["ids"], "<i4").astype(np.int32, copy=False)
    bits = fields.get("learn")
    if bits is None:
        learn = np.ones(len(ids), bool)
    else:
        learn = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(ids)).view(bool)
    return Example(ids=ids, learn=learn, name=fields["name"])


def write_ids(example: Example) -> bytes:
    """Returns the record from which `read_ids` makes the example."""
    fields = {"ids": example.ids.astype("<i4").tobytes(), "name": example.name}
    if not example.learn.all():
        fields["learn"] = np.packbits(example.learn).tobytes()
    packed = msgpack.packb(fields, unicode_errors="surrogatepass")
    assert packed is not None
    return packed


def is_shards(path: Path) -> bool:
    """Returns whether a folder holds a whole set of shards."""
    return (Path(path) / SUMMARY).is_file()


def open_shards(folder: Path, *, tokens: TokenSpace, tokenizer: Tokenizer | None) -> TokenShards:
    """Opens a folder of shards for a model.

    Shards of text alone fit every model with that tokenizer, whatever the model sees, and however
    far its vocabulary is padded.

    Args:
        folder: What `write_shards` wrote.
        tokens: The model's.
        tokenizer: The model's; None leaves unchecked how texts were cut.

    Raises:
        UserError: The shards were made for other tokens; what differs is named.
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
    """Returns a SHA-256 over what decides the ids of a text, however the tokenizer is stored.

    That is what each id spells, which ids are special, and how a text is cut that holds all manner
    of words, numbers, spaces and scripts, and then all that the vocabulary spells.
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
    """A shard, as the ArrayRecord library wants to be told of it."""

    filename: str
    take: int
    skip: int = 0
    examples_in_shard: int = 0


def _parts(files: Path | Sequence[Path]) -> Iterable[_Part]:
    if isinstance(files, Path):
        files = [files / shard.name for shard in Summary.read(files).shards]
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
