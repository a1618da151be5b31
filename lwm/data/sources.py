"""Sources of records: files whose records have stable numbers and are read in any order.

Sources can be pickled and read by several threads; a copy opens its files again.
"""

import bisect
import codecs
import itertools
import json
import os
import threading
import weakref
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, SupportsIndex, runtime_checkable

from lwm.cache import LRUCache
from lwm.data.huggingface import load_hub, load_saved
from lwm.data.paths import JSON, Warn, expand
from lwm.data.row_groups import read_group
from lwm.errors import UserError, several
from lwm.files import (
    edges_of,
    parse_json,
    reading,
    reason_of,
    require_package,
    require_unpacked,
    state_of,
    within,
)
from lwm.limits import RECORD_BYTES, RECORD_LIMIT, limit, places_of_lines, require_bounded

_ARRAY_RECORD = bytes.fromhex("83af70d10d884a3f")
_KEPT_BYTES = 256 << 20


class Record(NamedTuple):
    """One JSON object."""

    value: dict[str, Any]
    name: str
    """File and line, from 1, for messages."""
    line: int
    """The line in its file, from 0; blank lines count."""


def is_missing(value: Any) -> bool:
    """Returns whether a value stands for none: null, or the NaN of tables."""
    return value is None or (isinstance(value, float) and value != value)


@runtime_checkable
class Source(Protocol):
    """Records by number; a bad one raises `UserError` with its file and line."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Record: ...


def open_source(*paths: str | Path, warn: Warn = lambda text: None) -> Source:
    """Opens JSON lines, Parquet, ArrayRecord and text files, one after the other.

    A folder stands for its files of these kinds, sorted by name; `*`, `?` and `**` work as in a
    shell. Hidden files and those that systems add are never read. A text file is one record,
    `{"text": ...}`. Hugging Face's datasets are opened from the folder that `save_to_disk` wrote,
    or as `hf:org/name` or `hf:org/name/config:split`. A folder that `lwm tokenize` wrote is opened
    as its records.

    Args:
        paths: Files, folders, patterns or names of data sets.
        warn: Receives a line for each folder that holds other files, too.

    Raises:
        UserError: A path does not exist, cannot be read or is compressed; it is named.
    """
    files = [file for path in paths for file in expand(path, warn)]
    kept = LRUCache(_KEPT_BYTES)
    sources: list[Source] = []
    for is_text, group in itertools.groupby(files, _is_text):
        same = list(group)
        sources += [TextFiles(same)] if is_text else [_open(file, kept) for file in same]
    if not sources:
        raise UserError("no file is given")
    return sources[0] if len(sources) == 1 else Concatenation(sources)


def identity(source: Source) -> list:
    """Returns a fingerprint of the content of a source, independent of paths and times.

    That is its method `identity`; without one, only the type and the length.
    """
    own = getattr(source, "identity", None)
    return own() if own else [[type(source).__name__, len(source)]]


def files_of(source: Any) -> list[Path]:
    """Returns the files that a source, or a set of examples, is read from.

    That is its method `files`; without one, there are none.
    """
    own = getattr(source, "files", None)
    return own() if own else []


class FileSource:
    """Base of the sources that read one file."""

    def __init__(self, path: Path) -> None:
        with reading(path):
            self._path, self._state = path, state_of(path)

    def identity(self) -> list:
        """Returns the file's name, size and edges."""
        return [edges_of(self._path)]

    def files(self) -> list[Path]:
        """Returns the file."""
        return [self._path]

    def _require_unchanged(self) -> None:
        if state_of(self._path) != self._state:
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(f"{self._path} has changed since it was opened; start again")


class JsonLines(FileSource):
    """A file with one JSON object per line; blank lines are skipped."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._descriptor: int | None = None
        # Three flat arrays: a file may have a hundred million lines.
        self._starts, self._ends, self._lines = array("q"), array("q"), array("q")
        self._most = limit(RECORD_LIMIT, RECORD_BYTES)
        with reading(path), path.open("rb") as file:
            for number, (start, end) in enumerate(places_of_lines(file, self._most)):
                if end > start:
                    self._starts.append(start)
                    self._ends.append(end)
                    self._lines.append(number)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = within(index, len(self))
        line = self._lines[index]
        name = f"{self._path}:{line + 1}"
        start, end = self._starts[index], self._ends[index]
        if end - start > self._most:
            raise UserError(
                f"{name}: a line of {end - start:,} bytes, more than {self._most:,}; divide it, or "
                f"raise {RECORD_LIMIT}"
            )
        return Record(_parse(self._read(start, end), name), name, line)

    def _read(self, start: int, end: int) -> bytes:
        """Reads a line.

        Not from mapped memory: where a mapped file is cut short, a signal ends the process.
        """
        number = self._opened() if self._descriptor is None else self._descriptor
        try:
            found, data = os.fstat(number), os.pread(number, end - start, start)
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {reason_of(error)}") from None
        is_as_before = (found.st_size, found.st_mtime_ns) == self._state
        # Lines that are appended do no harm.
        if len(data) < end - start or not (is_as_before or found.st_size > self._state[0]):
            raise self._changed()
        return data

    def _opened(self) -> int:
        with reading(self._path):
            self._require_unchanged()
            self._descriptor = number = os.open(self._path, os.O_RDONLY)
            weakref.finalize(self, os.close, number)
            return number

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptor": None}


class Parquet(FileSource):
    """A Parquet file, each row a record; recently read row groups are cached."""

    def __init__(self, path: Path, kept: LRUCache | None = None) -> None:
        """Opens the file; several may share a cache of row groups."""
        super().__init__(path)
        parquet = require_package("pyarrow.parquet", "Parquet")
        with reading(path):
            self._metadata = parquet.read_metadata(path)
        groups = map(self._metadata.row_group, range(self._metadata.num_row_groups))
        self._ends = list(itertools.accumulate(group.num_rows for group in groups))
        self._kept = kept or LRUCache(_KEPT_BYTES)
        self._locks = _locks()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = within(index, len(self))
        number = bisect.bisect_right(self._ends, index)
        group = self._group(number)
        row = _row_of(group, index - (self._ends[number] - group.num_rows))
        return Record(row, f"{self._path}:{index + 1}", index)

    def _group(self, number: int) -> Any:
        key = self._path, number
        if (group := self._kept.get(key)) is None:
            # One of the threads that want a group reads it.
            with self._locks[number % len(self._locks)]:
                if (group := self._kept.get(key)) is None:
                    group = self._read(number)
                    self._kept.put(key, group, group.nbytes)
        return group

    def _read(self, number: int) -> Any:
        with reading(self._path):
            self._require_unchanged()
            return read_group(self._path, self._metadata, number)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_locks": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _locks=_locks())


class Rows:
    """A split of a Hugging Face data set, each row a record; media stay encoded bytes."""

    def __init__(self, dataset: Any, name: str) -> None:
        # Arrow tables: the library's own rows are slow, and decode images.
        self._dataset = dataset.with_format("arrow")
        self._name = name
        self._states = {path: state_of(path) for path in self.files()}

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = within(index, len(self))
        name = f"{self._name}:{index + 1}"
        # The library maps the files: to read beyond the end of one would end the process.
        for path, state in self._states.items():
            with reading(path):
                if state_of(path) != state:
                    raise UserError(f"{path} has changed since it was opened; start again")
        with reading(name):
            row = _row_of(self._dataset[index], 0)
        return Record(row, name, index)

    def identity(self) -> list:
        """Returns the name, the number of rows, and the library's own fingerprint."""
        return [[Path(self._name).name, len(self), self._dataset._fingerprint]]

    def files(self) -> list[Path]:
        """Returns the files of its tables, in a folder or in the library's cache."""
        return [Path(file["filename"]) for file in self._dataset.cache_files]


class ArrayRecord(FileSource):
    """An ArrayRecord file of JSON objects."""

    def __init__(self, path: Path) -> None:
        library = require_package("array_record.python.array_record_data_source", "ArrayRecord")
        super().__init__(path)
        with reading(path):
            self._records = library.ArrayRecordDataSource([str(path)])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = within(index, len(self))
        name = f"{self._path}:{index + 1}"
        with reading(self._path):
            self._require_unchanged()
            data = self._records[index]
        return Record(_parse(data, name), name, index)


class TextFiles:
    """Text files, one record `{"text": ...}` each."""

    def __init__(self, paths: str | Path | Sequence[str | Path]) -> None:
        self._paths = [Path(path) for path in several(paths)]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: SupportsIndex) -> Record:
        path = self._paths[within(index, len(self))]
        with reading(path):
            require_bounded(path)
            return Record({"text": path.read_text(encoding="utf-8-sig")}, str(path), 0)

    def identity(self) -> list:
        """Returns the files' names, sizes and edges."""
        return [edges_of(path) for path in self._paths]

    def files(self) -> list[Path]:
        """Returns the files."""
        return self._paths


class Concatenation:
    """Several sources, or other numbered collections, as one."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self._sources = list(sources)
        self._ends = list(itertools.accumulate(map(len, self._sources)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: SupportsIndex) -> Any:
        index = within(index, len(self))
        number = bisect.bisect_right(self._ends, index)
        source = self._sources[number]
        return source[index - (self._ends[number] - len(source))]

    def identity(self) -> list:
        """Returns the identities of all sources."""
        return [each for source in self._sources for each in identity(source)]

    def files(self) -> list[Path]:
        """Returns the files of all sources."""
        return [file for source in self._sources for file in files_of(source)]


def _locks() -> tuple[threading.Lock, ...]:
    return tuple(threading.Lock() for _ in range(16))


def _is_text(file: Path | str) -> bool:
    return isinstance(file, Path) and file.suffix.lower() == ".txt"


def _open(path: Path | str, kept: LRUCache) -> Source:
    """Opens a file by its first bytes, then by its name."""
    if isinstance(path, str) or path.is_dir():
        return Rows(load_hub(path) if isinstance(path, str) else load_saved(path), str(path))
    with reading(path), path.open("rb") as file:
        head = file.read(64)
    suffix, text = path.suffix.lower(), head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        return Parquet(path, kept)
    if head.startswith(_ARRAY_RECORD):
        return ArrayRecord(path)
    require_unpacked(path, head)
    if text.startswith(b"[") and suffix in JSON:
        raise UserError(f"{path} is one JSON array; write one object a line")
    if text.startswith(b"{") or suffix in JSON:
        return JsonLines(path)
    raise UserError(f"{path} is neither JSON lines nor Parquet, ArrayRecord or .txt")


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = parse_json(data.removeprefix(codecs.BOM_UTF8).decode())
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: not JSON: {error.msg} at character {error.pos + 1}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name}: not UTF-8") from None
    except ValueError as error:
        raise UserError(f"{name}: not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: not a JSON object, but {type(value).__name__}")
    return value


def _row_of(table: Any, index: int) -> dict[str, Any]:
    """Returns a row of an Arrow table, with lists of integers as arrays."""
    return {
        name: _plain(column[index])
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _plain(scalar: Any) -> Any:
    import pyarrow

    if isinstance(scalar, pyarrow.ListScalar) and scalar.is_valid:
        items, types = scalar.values, pyarrow.types
        if not items.null_count and (types.is_integer(items.type) or types.is_boolean(items.type)):
            return items.to_numpy(zero_copy_only=False)
    return scalar.as_py()
