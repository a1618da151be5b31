"""The files of a set of images and videos that are encoded by a VQGAN.

media-00000-of-00002.arrayrecord   records: JSON, such as {"caption": ..., "vision": [...]}
media-00001-of-00002.arrayrecord
bad.jsonl                          name and reason of each item that could not be read
media.json                         the summary; written last, so a set that has it is complete
"""

import dataclasses
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import named_file, read_versioned, reading, require_size, write_versioned
from lwm.fingerprint import Fingerprints
from lwm.vqgan.config import CodebookInfo

SUMMARY, BAD = "media.json", "bad.jsonl"
KIND = "media"
VERSION = 1
RESERVED = ("vision", "frames", "times", "is_video")
"""Keys of a record for the codes and their properties."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaCounts:
    """Counts over items."""

    items: int = 0
    """Records."""
    images: int = 0
    videos: int = 0
    frames: int = 0
    bad: int = 0
    """Items that could not be read; they are in no shard."""
    passed_over: int = 0
    """Files that are not media and were not named by the user."""

    @property
    def bad_share(self) -> float:
        """Share of bad items."""
        return self.bad / max(1, self.bad + self.items)

    def __add__(self, other: "MediaCounts") -> "MediaCounts":
        mine, theirs = vars(self), vars(other)
        return MediaCounts(**{name: count + theirs[name] for name, count in mine.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaShard:
    """One file of a set."""

    name: str
    size: int
    """Bytes."""
    items: int
    content: str = ""
    """See `content_of`; empty if an earlier version wrote it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaSummary:
    """The content of `media.json`."""

    input: dict[str, Any]
    """Input and settings of the shards, to detect another input."""
    codebook: CodebookInfo
    sampling: dict[str, Any]
    counts: MediaCounts
    shards: tuple[MediaShard, ...]
    files: Fingerprints = dataclasses.field(default_factory=dict)
    """Fingerprints of the files of the input."""

    @classmethod
    def read(cls, folder: Path) -> "MediaSummary":
        """Reads the file.

        Raises:
            UserError: It is missing, damaged, or of an unknown version.
        """
        file = folder / SUMMARY
        if not file.is_file():
            raise UserError(f"{folder} has no complete set of media shards: {SUMMARY} is missing")
        value = read_versioned(file, VERSION)
        with reading(file):
            value |= {
                "codebook": CodebookInfo(**value["codebook"]),
                "counts": MediaCounts(**value["counts"]),
                "shards": tuple(MediaShard(**shard) for shard in value["shards"]),
            }
            return cls(**value)

    def write(self, file: Path) -> None:
        """Writes the file for `read`."""
        write_versioned(dataclasses.asdict(self), file, VERSION)

    def rows(self) -> list[tuple[str, str]]:
        """Returns names and values for a table."""
        counts, codebook = self.counts, self.codebook
        size = sum(shard.size for shard in self.shards)
        codes = counts.frames * codebook.tokens_per_frame
        return [
            ("items", f"{counts.items:,}  bad {counts.bad:,}  skipped {counts.passed_over:,}"),
            ("media", f"{counts.images:,} images, {counts.videos:,} videos"),
            ("frames", f"{counts.frames:,} of {codebook.resolution} × {codebook.resolution}"),
            ("codes", f"{codes:,}  {codebook.tokens_per_frame} per frame, of {codebook.codes:,}"),
            ("shards", f"{len(self.shards):,}"),
            ("bytes", f"{size:,}"),
        ]


def is_media(folder: Path) -> bool:
    """Returns whether a folder holds media shards, or some of them."""
    return (folder / SUMMARY).is_file() or any(folder.glob(f"{KIND}-*-of-*.arrayrecord"))


def media_files(folder: Path) -> list[Path]:
    """Returns the shards of a folder that hold items.

    Raises:
        UserError: A shard is missing, or its size has changed.
    """
    files = []
    for shard in MediaSummary.read(folder).shards:
        file = named_file(folder, shard.name, folder / SUMMARY)
        require_size(file, shard.size)
        if shard.items:
            files.append(file)
    return files
