"""Images and videos as numbered items, and those that stand in lists.

An item is a record in the making: all that is known of its media, and where these are.
"""

import bisect
import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lwm.data.media.summary import RESERVED
from lwm.data.sources import Record, Source, identity
from lwm.errors import UserError
from lwm.files import within

PATHS = ("path", "file", "file_name", "image", "video")
"""Columns at which a list may have the path of an image or a video: the first that is there."""
_LINE = re.compile(r":\d+$")
_TEXTS = ("name", "caption", "question", "answer")


class Medium(NamedTuple):
    """An image or a video that is not read yet."""

    name: str
    content: bytes | Path


class Item(NamedTuple):
    """A record without its codes."""

    name: str
    record: dict[str, Any]
    media: list[tuple[dict[str, Any], Medium]]
    """Each with the part of the record that is to get its codes, perhaps the record itself."""
    asked: bool = True
    """False of a file that was merely found: if it is something else, it is no bad item."""


class Bad(NamedTuple):
    """An item that cannot be read."""

    name: str
    reason: str


@runtime_checkable
class Items(Protocol):
    """Items by number, in an order that does not change. They can be pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item | Bad: ...

    def identity(self) -> list:
        """Returns what tells these items from others, wherever they lie."""
        ...


class Listed:
    """The rows of a list, each an item."""

    def __init__(self, source: Source, folder: Path) -> None:
        """Takes the rows.

        Args:
            source: The list.
            folder: What its paths are relative to.
        """
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
            # What reads a list says where it is at fault.
            said = str(error).partition(": ")[0]
            return Bad(os.path.basename(said) if _LINE.search(said) else where, str(error))

    def identity(self) -> list:
        """Returns what tells the list from another; the files that it names are not looked at."""
        return identity(self._source)

    def _locate(self, value: Any, where: str) -> Medium:
        if isinstance(value, dict):  # as Hugging Face's library stores pictures
            if isinstance(value.get("bytes"), bytes):
                return Medium(str(value.get("path") or where), value["bytes"])
            value = value.get("path")
        if isinstance(value, bytes):
            return Medium(where, value)
        if not isinstance(value, str) or not value or "\0" in value:
            raise UserError(f"{where}: {value!r:.80} is no path")
        if "://" in value:
            raise UserError(f"{where}: {value:.80} is an address; fetch it, and give its path")
        return Medium(value, self._folder / value)


class Chain:
    """Items of several inputs, one after the other."""

    def __init__(self, parts: Sequence[Items]) -> None:
        self._parts = list(parts)
        self._ends = list(itertools.accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Item | Bad:
        index = within(index, len(self))
        number = bisect.bisect_right(self._ends, index)
        return self._parts[number][index - (self._ends[number] - len(self._parts[number]))]

    def identity(self) -> list:
        """Returns what tells the inputs from others."""
        return [part.identity() for part in self._parts]


def item_of(
    row: dict[str, Any],
    *,
    where: str,
    locate: Callable[[Any, str], Medium],
    medium: Medium | None = None,
    asked: bool = True,
) -> Item:
    """Makes an item of what is known of it.

    Args:
        row: Columns and their values.
        where: The file and line that messages name.
        locate: Returns the image or video that a value of the row stands for.
        medium: What the row is about, where that is known without it.
        asked: See `Item`.

    Raises:
        UserError: The row is no item.
    """
    taken = [key for key in RESERVED if row.get(key) is not None]
    if taken:
        raise UserError(f"{where}: column {taken[0]!r} is where the codes go; rename it")
    for key in _TEXTS:
        if not isinstance(row.get(key), str | None):
            raise UserError(f"{where}: {key} is no text, but {row[key]!r:.40}")
    values = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()}
    column = next((key for key in PATHS if values.get(key) is not None), None)
    if medium is None and column is not None:
        medium = locate(values.pop(column), where)
    media: list[tuple[dict[str, Any], Medium]] = []
    if values.get("messages") is not None:
        values["messages"] = _messages(values["messages"], where, locate, media)
    elif values.get("parts") is not None:
        if not isinstance(values["parts"], list):
            raise UserError(f"{where}: parts is no list of objects with a type")
        values["parts"] = [_part(part, where, locate, media) for part in values["parts"]]
    elif medium is None:
        raise UserError(f"{where}: no path; give it in a column {', '.join(PATHS)}")
    name = values.pop("name", None) or (medium.name if medium else where)
    record = {"name": readable(name), **_plain(values)}
    if medium is not None:
        media.insert(0, (record, medium))
    return Item(record["name"], record, media, asked)


def readable(name: str) -> str:
    """Returns a name as text, whatever bytes it is of."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _messages(value: Any, where: str, locate: Any, media: list) -> list[dict[str, Any]]:
    """Copies a conversation; the parts that are media lose their path, and are added to a list."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise UserError(f"{where}: messages is no list of objects with role and content")
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
        raise UserError(f"{where}: a part is none of text, image and video")
    column = next((key for key in PATHS if part.get(key) is not None), None)
    if column is None:
        raise UserError(f"{where}: a part is of type {kind}, but has no path")
    taken = [key for key in RESERVED if part.get(key) is not None]
    if taken:
        raise UserError(f"{where}: key {taken[0]!r} of a part is where the codes go; rename it")
    # A row of Parquet has all keys in all parts.
    kept = {k: v for k, v in _plain(part).items() if k != column and v is not None}
    media.append((kept, locate(part[column], where)))
    return kept


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a row JSON can hold: no bytes, no dates."""
    return {key: value for key, value in row.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    return isinstance(value, str | int | float | None)
