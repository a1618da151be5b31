"""Images and videos as numbered items, and items from lists.

An item is a record without codes, with the paths or contents of its media.
"""

import functools
import math
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lwm.data.media.archives import readable
from lwm.data.media.summary import RESERVED
from lwm.data.sources import Concatenation, Record, Source, files_of, identity, is_missing
from lwm.errors import UserError
from lwm.fingerprint import named
from lwm.media.frames import Frames

PATHS = ("path", "file", "file_name", "image", "video")
"""Columns that may hold the path of an image or a video; the first one present is used."""
_MOST_NAMED = 5
_LINE = re.compile(r":\d+$")
_TEXTS = ("name", "question", "answer")
_DESCRIPTIONS = ("caption", "question", "messages", "parts", "text")


@runtime_checkable
class Drawing(Protocol):
    """An image or a video that is computed, not read."""

    def frames(self, resolution: int) -> Frames:
        """Returns all frames, at this resolution where the drawing has none of its own."""
        ...


class Medium(NamedTuple):
    """An image or a video that is not read yet: its content, its path, or how it is computed."""

    name: str
    content: bytes | Path | Drawing


class Item(NamedTuple):
    """A record without its codes."""

    name: str
    record: dict[str, Any]
    media: list[tuple[dict[str, Any], Medium]]
    """Media, each with the part of the record, or the record itself, that its codes go to."""
    required: bool = True
    """False for a file found in a folder: if it is no image or video, it is skipped, not bad."""


class Bad(NamedTuple):
    """An item that cannot be read, with the reason."""

    name: str
    reason: str


class Survey(NamedTuple):
    """Facts about items that are known before their media are read."""

    media: int
    """Items that may be images or videos."""
    captioned: int | None
    """Number of these with a caption, a question or a conversation; None if unknown."""
    bad: Sequence[Bad]
    """Items known to be bad."""
    others: list[str]
    """Names of files that are passed over."""

    def rows(self) -> list[tuple[str, str]]:
        """Returns names and values for a table: missing captions, and files passed over."""
        found = []
        if self.captioned is not None and self.captioned < self.media:
            found.append(("captions", f"{self.captioned:,} of {self.media:,}"))
        if self.others:
            shown = ", ".join(self.others[:_MOST_NAMED])
            more = len(self.others) - _MOST_NAMED
            found.append(("left out", f"{shown} and {more:,} more" if more > 0 else shown))
        return found

    def require_few_bad(self, share: float) -> None:
        """Refuses more bad items than a share of all, before time is spent on the others.

        Raises:
            UserError: The first bad one is named.
        """
        total = self.media + len(self.bad)
        if len(self.bad) > share * total:
            raise UserError(
                f"{len(self.bad):,} of {total:,} items are bad before any is read, more than "
                f"{share:.1%}; repair them, or allow more with --max-bad-share; the first: "
                f"{self.bad[0].reason}"
            )


@runtime_checkable
class Items(Protocol):
    """Items by number, in a fixed order. They can be pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item | Bad: ...

    def identity(self) -> list:
        """Returns values that differ between items of different content, independent of paths."""
        ...


def named_files(items: Items) -> dict[str, Path]:
    """Returns the files that items are read from, by name: those of its method `named_files`."""
    own = getattr(items, "named_files", None)
    return own() if own else {}


def survey(items: Items) -> Survey:
    """Returns what is known of items before their media are read: of its method `survey`."""
    own = getattr(items, "survey", None)
    return own() if own else Survey(len(items), None, [], [])


class Listed:
    """Items of a list, one for each row."""

    def __init__(self, source: Source, folder: Path) -> None:
        """Takes the rows; their paths are relative to a folder."""
        self._source, self._folder = source, folder

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Item | Bad:
        where = f"row {index + 1}"
        try:
            row: Record = self._source[index]
            where = os.path.basename(row.name)
            return item_of(row.value, where=where, locate=self._locate)
        except UserError as error:
            # Readers of lists begin their messages with file and line.
            said = str(error).partition(": ")[0]
            return Bad(os.path.basename(said) if _LINE.search(said) else where, str(error))

    def identity(self) -> list:
        """Returns the identity of the list, without the files that it names."""
        return identity(self._source)

    def named_files(self) -> dict[str, Path]:
        """Returns the files of the list and those that it names."""
        return named(files_of(self._source)) | self._known[0]

    def survey(self) -> Survey:
        """Counts captions and bad rows."""
        return self._known[1]

    @functools.cached_property
    def _known(self) -> tuple[dict[str, Path], Survey]:
        files: dict[str, Path] = {}
        captioned, bad = 0, []
        for item in map(self.__getitem__, range(len(self))):
            if isinstance(item, Bad):
                bad.append(item)
                continue
            for _, medium in item.media:
                if not isinstance(medium.content, Path):
                    # The rows hold the pictures; to read all of them would take long.
                    return {}, Survey(len(self), None, [], [])
                files[medium.name] = medium.content
            captioned += is_described(item.record)
        return files, Survey(len(self) - len(bad), captioned, bad, [])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_known"}

    def _locate(self, value: Any, where: str) -> Medium:
        if isinstance(value, dict):  # as Hugging Face's library stores pictures
            if isinstance(value.get("bytes"), bytes):
                return Medium(str(value.get("path") or where), value["bytes"])
            value = value.get("path")
        if isinstance(value, bytes):
            return Medium(where, value)
        if not isinstance(value, str) or not value or "\0" in value:
            raise UserError(f"{where}: {value!r:.80} is not a path")
        if "://" in value:
            raise UserError(f"{where}: {value:.80} is a URL; download it, and give its path")
        return Medium(value, located(self._folder, value))


class Chain(Concatenation):
    """The items of several inputs, concatenated."""

    def identity(self) -> list:
        """Returns the identities of the inputs."""
        return [part.identity() for part in self._sources]

    def named_files(self) -> dict[str, Path]:
        """Returns the files of all inputs."""
        return {name: path for part in self._sources for name, path in named_files(part).items()}

    def survey(self) -> Survey:
        """Adds up the inputs."""
        parts = [survey(part) for part in self._sources]
        counts = [part.captioned for part in parts]
        return Survey(
            media=sum(part.media for part in parts),
            captioned=None if None in counts else sum(filter(None, counts)),
            bad=[bad for part in parts for bad in part.bad],
            others=[name for part in parts for name in part.others],
        )


def item_of(
    row: dict[str, Any],
    *,
    where: str,
    locate: Callable[[Any, str], Medium],
    medium: Medium | None = None,
    required: bool = True,
) -> Item:
    """Makes an item from the columns of a row.

    Args:
        where: File and line, for messages.
        locate: Finds the image or video for a path in the row.
        medium: The image or video of the row, if it is not in a column.

    Raises:
        UserError: A column is missing or invalid.
    """
    row = _checked(row, where)
    values = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()}
    column = next((key for key in PATHS if values.get(key) is not None), None)
    if medium is None and column is not None:
        medium = locate(values.pop(column), where)
    media: list[tuple[dict[str, Any], Medium]] = []
    if values.get("messages") is not None:
        values["messages"] = _messages(values["messages"], where, locate, media)
    elif values.get("parts") is not None:
        if not isinstance(values["parts"], list):
            raise UserError(f"{where}: parts is not a list of objects with a type")
        values["parts"] = [_part(part, where, locate, media) for part in values["parts"]]
    elif medium is None:
        raise UserError(f"{where}: no path; give it in a column {', '.join(PATHS)}")
    name = values.pop("name", None) or (medium.name if medium else where)
    record = {"name": readable(name), **_plain(values)}
    if medium is not None:
        media.insert(0, (record, medium))
    return Item(record["name"], record, media, required)


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the columns of a row, with null in place of NaN.

    Raises:
        UserError: A column is where the codes go, or should hold text and does not.
    """
    row = {key: None if is_missing(value) else value for key, value in row.items()}
    taken = [key for key in RESERVED if row.get(key) is not None]
    if taken:
        raise UserError(f"{where}: column {taken[0]!r} is where the codes go; rename it")
    if isinstance(row.get("text"), str) and not is_described(row | {"text": None}):
        row["caption"] = row.pop("text")  # as Hugging Face's imagefolder names it
    if "caption" in row:
        row["caption"] = _captions(row["caption"], where)
    for key in _TEXTS:
        if not isinstance(row.get(key), str | None):
            raise UserError(f"{where}: {key} is not text, but {row[key]!r:.40}")
    return row


def _captions(value: Any, where: str) -> str | list[str] | None:
    """Returns the caption of a row, or several of them; None if there is none.

    Raises:
        UserError: It is neither a text nor a list of texts.
    """
    if isinstance(value, str | None):
        return value
    texts = [value]
    if isinstance(value, list | np.ndarray):
        texts = [each for each in list(value) if not is_missing(each) and each != ""]
    if not all(isinstance(each, str) for each in texts):
        raise UserError(f"{where}: caption is not text, but {value!r:.40}")
    return texts if len(texts) > 1 else next(iter(texts), None)


def is_described(columns: Mapping[str, Any]) -> bool:
    """Returns whether the columns of an item hold a caption or a conversation."""
    values = [columns.get(key) for key in _DESCRIPTIONS]
    return any(not is_missing(value) and value != "" for value in values)


def located(folder: Path, name: str) -> Path:
    """Returns the path of a file, also if its name is written as on Windows or in macOS' NFD."""
    path = folder / name
    if os.path.exists(path):
        return path
    for spelt in (name, name.replace("\\", "/")):
        here = folder
        for part in PurePosixPath(spelt).parts:
            forms = [here / unicodedata.normalize(form, part) for form in ("NFC", "NFD")]
            here = next(filter(os.path.exists, forms), here / part)
        if os.path.exists(here):
            return here
    return path


def _messages(value: Any, where: str, locate: Any, media: list) -> list[dict[str, Any]]:
    """Copies a conversation; appends its media to a list and removes their paths."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise UserError(f"{where}: messages is not a list of objects with role and content")
    turns = []
    for turn in value:
        content = turn.get("content")
        if isinstance(content, list):
            content = [_part(part, where, locate, media) for part in content]
        elif not isinstance(content, str):
            raise UserError(f"{where}: content of a message is neither text nor a list of parts")
        turns.append(_plain(turn) | {"content": content})
    return turns


def _part(part: Any, where: str, locate: Any, media: list) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return _plain(part)
    if kind not in ("image", "video"):
        raise UserError(f"{where}: a part is not of type text, image or video")
    column = next((key for key in PATHS if part.get(key) is not None), None)
    if column is None:
        raise UserError(f"{where}: a part is of type {kind}, but has no path")
    taken = [key for key in RESERVED if part.get(key) is not None]
    if taken:
        raise UserError(f"{where}: key {taken[0]!r} of a part is where the codes go; rename it")
    # In Parquet every part has all keys, most of them null.
    kept = {k: v for k, v in _plain(part).items() if k != column and v is not None}
    media.append((kept, locate(part[column], where)))
    return kept


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a row that JSON can hold; drops bytes and dates."""
    return {key: value for key, value in row.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int | None)
