"""Images and videos of a folder or an archive, with the files that describe them.

A `.txt` of the same stem has the caption, a `.json` any columns (as in webdataset). Rows of a list
(CSV, JSON, Parquet) have both: of each one at the top that has a column of paths, and elsewhere of
`metadata.jsonl`, `metadata.csv` (as in Hugging Face's imagefolder) or `captions.jsonl`.
"""

import json
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from lwm.data.media.archives import Tree, readable
from lwm.data.media.items import Bad, Item, Medium, Survey, is_described, item_of, located
from lwm.data.media.lists import LISTS, described
from lwm.data.media.read import is_named_other
from lwm.data.sources import is_missing
from lwm.errors import UserError
from lwm.files import parse_json, reading, within

DESCRIBING = ("metadata.jsonl", "metadata.csv", "captions.jsonl")
"""Names of lists that describe the files beside them, in any folder."""
_FILES = ("file_name", "file", "path", "image", "video")
_SIDES = (".txt", ".json")
_SIDE_BYTES = 1 << 28

Row = tuple[str, bytes]
"""The place of a row, and its columns as JSON."""


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
        self._names = _Names(tree.names)
        self._sides = _Names(_lowered(name) if is_side(name) else "" for name in tree.names)
        self._bad = [*bad]
        for name, reason in tree.faults:
            self._bad.append(Bad(readable(prefix + name), f"{readable(prefix + name)}: {reason}"))
        media = (name for name in tree.names if not is_side(name))
        stems = {_key(stem) for name in media for stem in _stems(name)}
        counted = Counter(tree.names) if len(set(tree.names)) < len(tree.names) else {}
        rows: dict[int, list[Row]] = {}
        others: list[int] = []
        top = _top(tree.names)
        for number, name in enumerate(tree.names):
            beside = is_side(name) and _key(_stems(name)[0]) in stems
            is_known = posixpath.basename(name) in DESCRIBING
            if number in exclude or beside:
                continue
            at_top = posixpath.dirname(_key(name)) in ("", top)
            may_list = is_known or (at_top and name.lower().endswith(LISTS))
            if may_list and self._describe(number, rows, is_known=is_known):
                continue
            others.append(number)
        self._entries: list[tuple[int, str, bytes]] = []
        for number in others:
            if (count := counted.get(name := tree.names[number], 1)) > 1:
                label = readable(prefix + name)
                reason = f"{count} files have this name; rename them, so that each has one caption"
                self._bad.append(Bad(label, f"{label}: {reason}"))
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

    def named_files(self) -> dict[str, Path]:
        """Returns the files on disk, by their names."""
        files = self._tree.files().items()
        return {
            readable(self._prefix + name).rstrip("/") or path.name: path for name, path in files
        }

    def survey(self) -> Survey:
        """Counts captions, and names files that are no media by their suffix; reads no file."""
        media = captioned = 0
        others = []
        for number, where, row in self._entries:
            name = self._tree.names[number]
            if not where and not self._required and is_named_other(name):
                is_list = name.lower().endswith(LISTS)
                label = readable(self._prefix + name)
                others.append(f"{label} (no column {' or '.join(_FILES)})" if is_list else label)
                continue
            sides = (self._sides.has(stem + end) for stem in _stems(name) for end in _SIDES)
            captioned += is_described(json.loads(row)) or any(sides)
            media += 1
        return Survey(media=media, captioned=captioned, bad=self._bad, others=others)

    def _describe(self, number: int, rows: dict[int, list[Row]], *, is_known: bool) -> bool:
        """Collects the rows of a list by the number of the file that each describes.

        Returns whether it is a list: by its name, or as it has a column of paths.
        """
        name = self._tree.names[number]
        try:
            found = list(described(name, self._read(number)))
        except UserError as error:
            if is_known:
                self._bad.append(Bad(readable(self._prefix + name), str(error)))
            return is_known
        columns = [None if isinstance(row, str) else _column_of(row) for _, row in found]
        if not is_known and not any(columns):
            return False
        # Lists are often saved in two formats, and then hold the same.
        others = {there: {_sorted(row) for _, row in known} for there, known in rows.items()}
        for (where, row), column in zip(found, columns, strict=True):
            label = where
            try:
                if isinstance(row, str):
                    raise UserError(row)
                if column is None:
                    raise UserError(f"{where}: no path; give it in a column {', '.join(_FILES)}")
                file = row.pop(column)
                label = posixpath.normpath(posixpath.join(posixpath.dirname(name), file))
                there = self._find(label, f"{where}: {file}")
            except UserError as error:
                self._bad.append(Bad(readable(self._prefix + label), str(error)))
                continue
            content = json.dumps(row, default=lambda value: None).encode()
            if _sorted(content) not in others.get(there, ()):
                rows.setdefault(there, []).append((where, content))
        return True

    def _find(self, name: str, what: str) -> int:
        """Returns the number of the file of a name in a list, with `/` or Windows' `\\`.

        Raises:
            UserError: It is not there, or several files have this name.
        """
        number = self._names.find(name)
        if number is None:
            number = self._names.find(name.replace("\\", "/"))
        if number is None:
            raise UserError(f"{what} is not there")
        return number

    def _add_sides(self, name: str, columns: dict[str, Any]) -> None:
        """Adds columns from files of the same stem, where they are still missing."""
        for ending in _SIDES[::-1]:
            sides = (self._sides.find(stem + ending) for stem in _stems(name))
            number = next((each for each in sides if each is not None), None)
            if number is None or self._tree.names[number] == name:
                continue
            side = readable(self._tree.names[number])
            try:
                text = self._read(number).decode("utf-8-sig")
                values = parse_json(text) if ending == ".json" else {"caption": text.strip()}
            except ValueError:
                kind = "JSON" if ending == ".json" else "text"
                raise UserError(f"{side}: not {kind} in UTF-8") from None
            if not isinstance(values, dict):
                raise UserError(f"{side}: not a JSON object")
            for key, value in values.items():
                if is_missing(columns.get(key)):
                    columns[key] = value

    def _locate(self, value: Any, where: str, above: str) -> Medium:
        if not isinstance(value, str):
            raise UserError(f"{where}: {value!r:.80} is not a path")
        return self._medium(self._find(posixpath.join(above, value), f"{where}: {value!r:.80}"))

    def _medium(self, number: int, *, is_text: bool = False) -> Medium:
        label = readable(self._prefix + self._tree.names[number])
        try:
            with reading(label):
                return Medium(label, self._tree.read(number, is_text=is_text))
        except UserError as error:
            reason = str(error)
            raise UserError(reason if label in reason else f"{label}: {reason}") from None

    def _read(self, number: int) -> bytes:
        """Returns the content of a small file."""
        label, content = self._medium(number, is_text=True)
        with reading(label):
            if isinstance(content, Path):
                with content.open("rb") as file:
                    content = file.read(_SIDE_BYTES + 1)
        assert isinstance(content, bytes), "a tree holds files"
        if len(content) > _SIDE_BYTES:
            raise UserError(f"{label}: more than {_SIDE_BYTES} bytes, which are read at once")
        return content


class _Names:
    """Numbers of files by their names, however accents are composed: macOS writes them in NFD."""

    def __init__(self, names: Iterable[str]) -> None:
        """Takes all names in order; empty ones stand for files that are not looked for."""
        self._names = list(names)
        self._numbers: dict[str, int] = {}
        self._shared: dict[str, set[int]] = {}
        for number, name in enumerate(self._names):
            if name and (first := self._numbers.setdefault(_key(name), number)) != number:
                self._shared.setdefault(_key(name), {first}).add(number)

    def has(self, name: str) -> bool:
        """Returns whether a file has the name."""
        return _key(name) in self._numbers

    def find(self, name: str) -> int | None:
        """Returns the number of the file of a name; None if there is none.

        Raises:
            UserError: Several files have the name.
        """
        key = _key(name)
        shared = self._shared.get(key, ())
        exact = [each for each in shared if self._names[each] == name]
        if shared and len(exact) != 1:
            raise UserError(f"{len(shared)} files are called {readable(name)}; rename all but one")
        return exact[0] if exact else self._numbers.get(key)


def is_side(name: str) -> bool:
    """Returns whether a file is named as one that describes another."""
    return posixpath.splitext(name)[1].lower() in _SIDES


def sides_beside(path: Path) -> list[Path]:
    """Returns the files that describe a file."""
    endings = (*_SIDES, *map(str.upper, _SIDES))
    beside = [located(path.parent, path.stem + ending) for ending in endings]
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


def _key(name: str) -> str:
    if name.isascii() and "./" not in name and "//" not in name:
        return name  # as almost all are, of perhaps millions
    return unicodedata.normalize("NFC", posixpath.normpath(name))


def _top(names: Iterable[str]) -> str:
    """Returns the folder that all files are in."""
    folders = {posixpath.dirname(_key(name)) for name in names}
    try:
        return posixpath.commonpath(folders)
    except ValueError:  # of no files, or of absolute and relative names
        return ""


def _column_of(row: dict[str, Any]) -> str | None:
    return next((key for key in _FILES if isinstance(row.get(key), str)), None)


def _sorted(row: bytes) -> str:
    return json.dumps(json.loads(row), sort_keys=True)
