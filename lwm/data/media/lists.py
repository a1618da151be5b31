"""Lists of media: CSV files as records, and small lists that describe the files beside them.

Unlike pyarrow's, this CSV reader keeps line numbers, and a bad row leaves the others readable.
"""

import codecs
import csv
import io
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, SupportsIndex

from lwm.data.row_groups import read_rows
from lwm.data.sources import FileSource, Record
from lwm.errors import UserError
from lwm.files import parse_json, reading, within
from lwm.limits import limit

LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Suffixes of lists that may describe the files beside them."""
_ROWS = 1 << 22
_CELL = 1 << 24
"""Characters of a cell at most; the limit of Python is 131,072 by default."""


class Csv(FileSource):
    """The rows of a CSV or TSV file as records of strings; empty cells are left out."""

    def __init__(self, path: Path) -> None:
        """Finds the start of each row.

        Raises:
            UserError: The file cannot be read, or has no header.
        """
        super().__init__(path)
        self._starts, self._lines = array("q"), array("q")
        with reading(path), path.open("rb") as file:
            lines = _Lines(file)
            rows = _rows(lines, path)
            self._header = _header(rows, path)
            for row in rows:
                self._starts.append(row.start)
                self._lines.append(row.line)
            self._starts.append(lines.place)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = within(index, len(self))
        name = f"{self._path}:{self._lines[index] + 1}"
        with reading(self._path), self._path.open("rb") as file:
            self._require_unchanged()
            file.seek(self._starts[index])
            data = file.read(self._starts[index + 1] - self._starts[index])
        row = next(_rows(_Lines(io.BytesIO(data)), self._path))
        return Record(_record(row.cells, self._header, name), name, self._lines[index])


def is_csv(path: Path) -> bool:
    """Returns whether a file is CSV or TSV, by its suffix: the content could be any text."""
    return path.suffix.lower() in (".csv", ".tsv")


def described(name: str, content: bytes) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yields the place of each row of a small list, with the row or the reason why it is bad.

    The suffix of its name distinguishes CSV from Parquet, JSON lines, and an array of JSON objects.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    if (lines := content.count(b"\n")) > (most := limit("LWM_MAX_VALUES", _ROWS)):
        yield name, f"{name}: {lines:,} lines, more than {most:,}; raise LWM_MAX_VALUES"
        return
    if is_csv(Path(name)):
        yield from _described_by_csv(name, content)
        return
    if name.lower().endswith(".parquet") or content.lstrip().startswith(b"["):
        try:
            rows = (
                read_rows(name, content)
                if name.lower().endswith(".parquet")
                else parse_json(content)
            )
        except (UserError, ValueError) as error:
            yield name, str(error) if isinstance(error, UserError) else f"{name}: not JSON: {error}"
            return
        for number, row in enumerate(rows, 1):
            where = f"{name}:{number}"
            yield where, row if isinstance(row, dict) else f"{where}: not a JSON object"
        return
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{name}:{number}"
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError as error:
                yield where, f"{where}: not JSON: {error}"
                continue
            yield where, row if isinstance(row, dict) else f"{where}: not a JSON object"


def _described_by_csv(name: str, content: bytes) -> Iterator[tuple[str, dict[str, Any] | str]]:
    rows = _rows(_Lines(io.BytesIO(content)), Path(name))
    try:
        header = _header(rows, name)
    except UserError as error:
        yield name, str(error)
        return
    for row in rows:
        where = f"{name}:{row.line + 1}"
        try:
            yield where, _record(row.cells, header, where)
        except UserError as error:
            yield where, str(error)


class _Lines:
    """The lines of a file as text, with the number of lines and bytes read so far."""

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


class _Row(NamedTuple):
    start: int
    """Bytes before the row."""
    line: int
    """Lines before the row."""
    cells: list[str] | None
    """None if the row is not CSV in UTF-8."""


def _rows(lines: _Lines, path: Path) -> Iterator[_Row]:
    """Yields the first row, and of the others those that are not blank."""
    csv.field_size_limit(_CELL)
    reader = csv.reader(iter(lines), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    is_first = True
    while True:
        start, line = lines.place, lines.number
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            cells = None
        if cells and any("\udc80" <= char <= "\udcff" for cell in cells for char in cell):
            cells = None
        if is_first or cells is None or any(cells):
            yield _Row(start, line, cells)
        is_first = False


def _header(rows: Iterator[_Row], path: Path | str) -> list[str]:
    cells = next(rows, _Row(0, 0, None)).cells
    header = [name.strip() for name in cells or []]
    if not any(header) or len(set(header)) < len(header):
        raise UserError(f"{path}: the first line should name each column once")
    return header


def _record(cells: list[str] | None, header: list[str], name: str) -> dict[str, Any]:
    if cells is None:
        raise UserError(f"{name}: not a row of CSV in UTF-8")
    if len(cells) != len(header):
        raise UserError(f"{name}: {len(cells)} cells for {len(header)} columns")
    # Pandas can write NaN for an empty cell.
    missing = ("", "nan", "NaN")
    return {key: cell for key, cell in zip(header, cells, strict=True) if cell not in missing}
