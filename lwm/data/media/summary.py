"""Images and videos as codes of a VQGAN: records in ArrayRecord files, and what they are.

media-00000-of-00002.arrayrecord   a record each: JSON, such as {"caption": ..., "vision": [...]}
media-00001-of-00002.arrayrecord
bad.jsonl                          name and reason of each item that could not be read
media.json                         what they are; written last, so that with it all is whole
"""

import dataclasses
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import read_versioned, reading, require_size, write_versioned
from lwm.vqgan.config import CodebookInfo

SUMMARY, BAD = "media.json", "bad.jsonl"
KIND = "media"
VERSION = 1
RESERVED = ("vision", "frames", "times", "is_video")
"""Keys of a record at which the codes stand, and what is known of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaCounts:
    """What some items hold."""

    items: int = 0
    """Records."""
    images: int = 0
    videos: int = 0
    frames: int = 0
    bad: int = 0
    """Items that could not be read, and are in no shard."""
    passed_over: int = 0
    """Files beside the media that are something else, and were not asked for by name."""

    @property
    def bad_share(self) -> float:
        """Bad items among all."""
        return self.bad / max(1, self.bad + self.items)

    def __add__(self, other: "MediaCounts") -> "MediaCounts":
        return MediaCounts(
            items=self.items + other.items,
            images=self.images + other.images,
            videos=self.videos + other.videos,
            frames=self.frames + other.frames,
            bad=self.bad + other.bad,
            passed_over=self.passed_over + other.passed_over,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaShard:
    """One file."""

    name: str
    size: int
    """Bytes."""
    items: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaSummary:
    """What a folder of such records holds: its `media.json`."""

    input: dict[str, Any]
    """What the shards were made from and how, to tell another input."""
    codebook: CodebookInfo
    sampling: dict[str, Any]
    counts: MediaCounts
    shards: tuple[MediaShard, ...]

    @classmethod
    def read(cls, folder: Path) -> "MediaSummary":
        """Reads the file.

        Raises:
            UserError: It is not there, is damaged, or is of a version that is not known.
        """
        file = folder / SUMMARY
        if not file.is_file():
            raise UserError(f"{folder} holds no whole set of media shards: there is no {SUMMARY}")
        value = read_versioned(file, VERSION)
        with reading(file):
            value |= {
                "codebook": CodebookInfo(**value["codebook"]),
                "counts": MediaCounts(**value["counts"]),
                "shards": tuple(MediaShard(**shard) for shard in value["shards"]),
            }
            return cls(**value)

    def write(self, file: Path) -> None:
        """Writes the file, which `read` reads."""
        write_versioned(dataclasses.asdict(self), file, VERSION)

    def rows(self) -> list[tuple[str, str]]:
        """Returns names and values for a table."""
        counts, codebook = self.counts, self.codebook
        size = sum(shard.size for shard in self.shards)
        codes = counts.frames * codebook.tokens_per_frame
        return [
            ("items", f"{counts.items:,}  bad {counts.bad:,}  passed over {counts.passed_over:,}"),
            ("media", f"{counts.images:,} images, {counts.videos:,} videos"),
            ("frames", f"{counts.frames:,} of {codebook.resolution} × {codebook.resolution}"),
            ("codes", f"{codes:,}  {codebook.tokens_per_frame} a frame, of {codebook.codes:,}"),
            ("shards", f"{len(self.shards):,}"),
            ("bytes", f"{size:,}"),
        ]


def is_media(folder: Path) -> bool:
    """Returns whether a folder holds media shards, or some of them."""
    return (folder / SUMMARY).is_file() or any(folder.glob(f"{KIND}-*-of-*.arrayrecord"))


def media_files(folder: Path) -> list[Path]:
    """Returns the shards of a folder.

    Raises:
        UserError: Not all are there, or one has not the size that it was written with.
    """
    files = []
    for shard in MediaSummary.read(folder).shards:
        file = folder / shard.name
        require_size(file, shard.size)
        if shard.items:
            files.append(file)
    return files
