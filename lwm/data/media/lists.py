"""Lists as tables of text: CSV, and the rows that describe the files beside them."""

import codecs
import csv
import io
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, SupportsIndex

from lwm.data.sources import Record
from lwm.errors import UserError
from lwm.files import edges_of, reading, state_of, within

_CELL = 1 << 24
"""Characters of a cell at most; Python's own limit is 131,072."""


class Csv:
    """A CSV file, a row a record; `.tsv` has tabs. Cells are texts, and empty ones missing."""

    def __init__(self, path: Path) -> None:
        """Finds where each row starts.

        Raises:
            UserError: The file cannot be read, or has no header.
        """
        self._path = path
        self._starts, self._lines = array("q"), array("q")
        with reading(path), path.open("rb") as file:
            lines = _Lines(file)
            rows = _rows(lines, path)
            self._header = _header(rows, path)
            start, line = lines.place, lines.number
            for row in rows:
                if row is None or any(row):
                    self._starts.append(start)
                    self._lines.append(line)
                start, line = lines.place, lines.number
            self._starts.append(start)
        self._state = state_of(path)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = within(index, len(self))
        name = f"{self._path}:{self._lines[index] + 1}"
        with reading(self._path), self._path.open("rb") as file:
            if state_of(self._path) != self._state:
                raise UserError(f"{self._path} has changed since it was opened; start again")
            file.seek(self._starts[index])
            data = file.read(self._starts[index + 1] - self._starts[index])
        row = next(_rows(_Lines(io.BytesIO(data)), self._path), None)
        return Record(_record(row, self._header, name), name, self._lines[index])

    def identity(self) -> list:
        """Returns the file's name, size and edges."""
        return [edges_of(self._path)]


def is_csv(path: Path) -> bool:
    """Returns whether a file's name says that it is CSV: its content could be any text."""
    return path.suffix.lower() in (".csv", ".tsv")


def described(name: str, content: bytes) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yields where each row of a small list stands, and the row, or why there is none.

    Args:
        name: What the file is called, which says whether it is CSV.
        content: All of it: CSV, or JSON lines.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    if is_csv(Path(name)):
        yield from _described_by_csv(name, content)
        return
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{name}:{number}"
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield where, f"{where}: not JSON: {error}"
                continue
            yield where, row if isinstance(row, dict) else f"{where}: not a JSON object"


def _described_by_csv(name: str, content: bytes) -> Iterator[tuple[str, dict[str, Any] | str]]:
    lines = _Lines(io.BytesIO(content))
    rows = _rows(lines, Path(name))
    try:
        header = _header(rows, name)
    except UserError as error:
        yield name, str(error)
        return
    line = lines.number
    for row in rows:
        where = f"{name}:{line + 1}"
        if row is None or any(row):
            try:
                yield where, _record(row, header, where)
            except UserError as error:
                yield where, str(error)
        line = lines.number


class _Lines:
    """The lines of a file as text, and how far they were read."""

    def __init__(self, file: BinaryIO | io.BytesIO) -> None:
        self._file = file
        self.place, self.number = 0, 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            if not self.place:
                self.place = len(line)
                line = line.removeprefix(codecs.BOM_UTF8)
            else:
                self.place += len(line)
            self.number += 1
            yield line.decode(errors="surrogateescape")


def _rows(lines: _Lines, path: Path) -> Iterator[list[str] | None]:
    """Yields the cells of each row; None for what is no row."""
    csv.field_size_limit(_CELL)
    reader = csv.reader(iter(lines), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None
            continue
        unreadable = any("\udc80" <= char <= "\udcff" for cell in row for char in cell)
        yield None if unreadable else row


def _header(rows: Iterator[list[str] | None], path: Path | str) -> list[str]:
    header = [name.strip() for name in next(rows, None) or []]
    if not any(header) or len(set(header)) < len(header):
        raise UserError(f"{path}: the first line should name each column once")
    return header


def _record(row: list[str] | None, header: list[str], name: str) -> dict[str, Any]:
    if row is None:
        raise UserError(f"{name}: no row of CSV in UTF-8")
    if len(row) != len(header):
        raise UserError(f"{name}: {len(row)} cells for {len(header)} columns")
    return {key: cell for key, cell in zip(header, row, strict=True) if cell}
