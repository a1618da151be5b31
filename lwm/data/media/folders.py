"""Images and videos of a folder or an archive, with the files that describe them.

A `.txt` of the same stem has the caption, a `.json` any columns (as in webdataset). Rows of
`metadata.jsonl`, `metadata.csv` (as in Hugging Face's imagefolder) or `captions.jsonl` have both.
"""

import json
import posixpath
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from lwm.data.media.archives import Tree, readable
from lwm.data.media.items import Bad, Item, Medium, item_of
from lwm.data.media.lists import described
from lwm.errors import UserError
from lwm.files import reading, within

DESCRIBING = ("metadata.jsonl", "metadata.csv", "captions.jsonl")
"""Names of lists that describe the files beside them."""
_FILES = ("file_name", "file", "path", "image", "video")
_SIDES = (".txt", ".json")
_SIDE_BYTES = 1 << 28


class MediaFiles:
    """Items of a tree: one for each file that may be media, or for each row about it."""

    def __init__(
        self,
        tree: Tree,
        *,
        prefix: str = "",
        required: bool = False,
        exclude: Container[int] = (),
        bad: Sequence[Bad] = (),
    ) -> None:
        """Assigns descriptions to files.

        Args:
            prefix: The start of all names of items.
            required: Whether the user named all files, so that each must be media.
            exclude: Numbers of files to skip.
            bad: Further items that could not be opened.
        """
        self._tree, self._prefix, self._required = tree, prefix, required
        self._numbers = {name: number for number, name in enumerate(tree.names)}
        self._sides = {
            _lowered(name): number for name, number in self._numbers.items() if is_side(name)
        }
        self._bad = [*bad]
        for name, reason in tree.faults:
            self._bad.append(Bad(readable(prefix + name), f"{readable(prefix + name)}: {reason}"))
        rows: dict[int, list[tuple[str, bytes]]] = {}
        for number, name in enumerate(tree.names):
            if posixpath.basename(name) in DESCRIBING and number not in exclude:
                self._describe(number, rows)
        stems = {stem for name in tree.names if not is_side(name) for stem in _stems(name)}
        self._entries: list[tuple[int, str, bytes]] = []
        for number, name in enumerate(tree.names):
            beside = is_side(name) and _stems(name)[0] in stems
            if number in exclude or beside or posixpath.basename(name) in DESCRIBING:
                continue
            for where, row in rows.get(number, [("", b"{}")]):
                self._entries.append((number, where, row))

    def __len__(self) -> int:
        return len(self._entries) + len(self._bad)

    def __getitem__(self, index: int) -> Item | Bad:
        index = within(index, len(self))
        if index >= len(self._entries):
            return self._bad[index - len(self._entries)]
        number, where, row = self._entries[index]
        name = self._tree.names[number]
        label = readable(self._prefix + name)
        above = posixpath.dirname(where.rpartition(":")[0] or name)
        try:
            columns = json.loads(row)
            self._add_sides(name, columns)
            return item_of(
                columns,
                where=where or label,
                locate=lambda value, at: self._locate(value, at, above),
                medium=self._medium(number),
                required=self._required or bool(where),
            )
        except UserError as error:
            return Bad(label, str(error))

    def identity(self) -> list:
        """Returns the prefix and the identity of the tree."""
        return [self._prefix, self._tree.identity()]

    def _describe(self, number: int, rows: dict[int, list[tuple[str, bytes]]]) -> None:
        """Collects the rows of a list by the number of the file that each describes."""
        name = self._tree.names[number]
        try:
            content = self._read(number)
        except UserError as error:
            self._bad.append(Bad(readable(self._prefix + name), str(error)))
            return
        for where, row in described(name, content):
            if isinstance(row, str):
                self._bad.append(Bad(readable(self._prefix + where), row))
                continue
            column = next((key for key in _FILES if isinstance(row.get(key), str)), None)
            if column is None:
                reason = f"{where}: no path; give it in a column {', '.join(_FILES)}"
                self._bad.append(Bad(readable(self._prefix + where), reason))
                continue
            file = row.pop(column)
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), file))
            if (there := self._numbers.get(target)) is None:
                reason = f"{where}: {file} is not there"
                self._bad.append(Bad(readable(self._prefix + target), reason))
            else:
                rows.setdefault(there, []).append((where, json.dumps(row).encode()))

    def _add_sides(self, name: str, columns: dict[str, Any]) -> None:
        """Adds columns from files of the same stem, where they are still missing."""
        for ending in _SIDES[::-1]:
            sides = (self._sides.get(stem + ending) for stem in _stems(name))
            number = next((each for each in sides if each is not None), None)
            if number is None or self._tree.names[number] == name:
                continue
            side = readable(self._tree.names[number])
            try:
                text = self._read(number).decode("utf-8-sig")
                values = json.loads(text) if ending == ".json" else {"caption": text.strip()}
            except (ValueError, RecursionError):
                kind = "JSON" if ending == ".json" else "text"
                raise UserError(f"{side}: not {kind} in UTF-8") from None
            if not isinstance(values, dict):
                raise UserError(f"{side}: not a JSON object")
            for key, value in values.items():
                if columns.get(key) is None:
                    columns[key] = value

    def _locate(self, value: Any, where: str, above: str) -> Medium:
        target = posixpath.normpath(posixpath.join(above, value)) if isinstance(value, str) else ""
        if target not in self._numbers:
            raise UserError(f"{where}: {value!r:.80} is not there")
        return self._medium(self._numbers[target])

    def _medium(self, number: int) -> Medium:
        label = readable(self._prefix + self._tree.names[number])
        try:
            with reading(label):
                return Medium(label, self._tree.read(number))
        except UserError as error:
            reason = str(error)
            raise UserError(reason if label in reason else f"{label}: {reason}") from None

    def _read(self, number: int) -> bytes:
        """Returns the content of a small file."""
        label, content = self._medium(number)
        with reading(label):
            if isinstance(content, Path):
                with content.open("rb") as file:
                    content = file.read(_SIDE_BYTES + 1)
        if len(content) > _SIDE_BYTES:
            raise UserError(f"{label}: more than {_SIDE_BYTES} bytes, which are read at once")
        return content


def is_side(name: str) -> bool:
    """Returns whether a file is named as one that describes another."""
    return posixpath.splitext(name)[1].lower() in _SIDES


def sides_beside(path: Path) -> list[Path]:
    """Returns the files that describe a file."""
    endings = (*_SIDES, *map(str.upper, _SIDES))
    beside = [path.with_name(path.stem + ending) for ending in endings]
    return [each for each in beside if each != path and each.is_file()]


def _lowered(name: str) -> str:
    """Returns a path with a lower-case suffix."""
    stem, ending = posixpath.splitext(name)
    return stem + ending.lower()


def _stems(name: str) -> list[str]:
    """Returns a path without its last suffix, and without all suffixes."""
    above, base = posixpath.split(name)
    stems = dict.fromkeys((posixpath.splitext(base)[0], base.partition(".")[0] or base))
    return [posixpath.join(above, stem) for stem in stems]
