"""Images and videos as numbered items, and items from lists.

An item is a record without codes, with the paths or contents of its media.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lwm.data.media.archives import readable
from lwm.data.media.summary import RESERVED
from lwm.data.sources import Concatenation, Record, Source, identity
from lwm.errors import UserError

PATHS = ("path", "file", "file_name", "image", "video")
"""Columns that may hold the path of an image or a video; the first one present is used."""
_LINE = re.compile(r":\d+$")
_TEXTS = ("name", "caption", "question", "answer")


class Medium(NamedTuple):
    """An image or a video that is not read yet: its content or its path."""

    name: str
    content: bytes | Path


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


@runtime_checkable
class Items(Protocol):
    """Items by number, in a fixed order. They can be pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item | Bad: ...

    def identity(self) -> list:
        """Returns values that differ between items of different content, independent of paths."""
        ...


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
        """Returns the identity of the list; the files that it names are not read."""
        return identity(self._source)

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
        return Medium(value, self._folder / value)


class Chain(Concatenation):
    """The items of several inputs, concatenated."""

    def identity(self) -> list:
        """Returns the identities of the inputs."""
        return [part.identity() for part in self._sources]


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
    taken = [key for key in RESERVED if row.get(key) is not None]
    if taken:
        raise UserError(f"{where}: column {taken[0]!r} is where the codes go; rename it")
    for key in _TEXTS:
        if not isinstance(row.get(key), str | None):
            raise UserError(f"{where}: {key} is not text, but {row[key]!r:.40}")
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
    return isinstance(value, str | int | float | None)
