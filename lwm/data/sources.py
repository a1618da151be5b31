"""Where records come from: files whose records have stable numbers and can be had in any order.

Sources can be pickled and read by several threads; what a library or the system holds open is
opened again where it is needed.
"""

import bisect
import contextlib
import glob
import importlib
import itertools
import json
import mmap
import operator
from array import array
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, SupportsIndex, runtime_checkable

from lwm.errors import UserError

_JSON = (".jsonl", ".ndjson", ".json")
_KNOWN = (*_JSON, ".parquet", ".arrayrecord", ".array_record", ".txt")
_ARRAY_RECORD = bytes.fromhex("83af70d10d884a3f")


class Record(NamedTuple):
    """One JSON object."""

    value: dict[str, Any]
    name: str
    """File and line, from 1, for messages."""
    line: int
    """The line in its file, from 0; blank lines count."""


@runtime_checkable
class Source(Protocol):
    """Records by number. A record that is none raises `UserError`, which names file and line."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Record: ...


def open_source(*paths: str | Path) -> Source:
    """Opens JSON lines, Parquet, ArrayRecord and text files, one after the other.

    A folder stands for the files of these kinds in it, by name; `*`, `?` and `**` do as in a
    shell. A text file is one record, `{"text": ...}`.

    Raises:
        UserError: Nothing is there, or it cannot be read; the path is named.
    """
    files = [file for path in paths for file in _expand(path)]
    sources: list[Source] = []
    for is_text, group in itertools.groupby(files, lambda file: file.suffix.lower() == ".txt"):
        same = list(group)
        sources += [TextFiles(same)] if is_text else [_kind_of(file)(file) for file in same]
    if not sources:
        raise UserError("no file is given")
    return sources[0] if len(sources) == 1 else Concatenation(sources)


class JsonLines:
    """A file with one JSON object a line; blank lines are passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes: mmap.mmap | None = None
        # Three flat arrays: a file may have a hundred million lines.
        self._starts, self._ends, self._lines = array("q"), array("q"), array("q")
        end = 0
        with _reading(path), path.open("rb") as file:
            for number, line in enumerate(file):
                end += len(line)
                if not line.isspace():
                    self._starts.append(end - len(line))
                    self._ends.append(end)
                    self._lines.append(number)
        self._state = _state(path)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = _within(index, len(self))
        line = self._lines[index]
        name = f"{self._path}:{line + 1}"
        return Record(
            _parse(self._map()[self._starts[index] : self._ends[index]], name), name, line
        )

    def _map(self) -> mmap.mmap:
        if self._bytes is None:
            with _reading(self._path), self._path.open("rb") as file:
                if _state(self._path) != self._state:
                    raise UserError(f"{self._path} has changed since it was opened; start again")
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._bytes

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_bytes": None}


class Parquet:
    """A Parquet file, a row a record; the last row group read is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parquet = _need("pyarrow.parquet", "Parquet")
        with _reading(path):
            metadata = self._parquet.read_metadata(path)
        sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        self._ends = list(itertools.accumulate(sizes))
        self._kept: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = _within(index, len(self))
        group = bisect.bisect_right(self._ends, index)
        kept, table = self._kept
        if kept != group:
            with _reading(self._path), self._parquet.ParquetFile(self._path) as file:
                table = file.read_row_group(group)
            self._kept = (group, table)
        row = table.slice(index - (self._ends[group] - table.num_rows), 1).to_pylist()[0]
        return Record(row, f"{self._path}:{index + 1}", index)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": (-1, None), "_parquet": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _parquet=_need("pyarrow.parquet", "Parquet"))


class ArrayRecord:
    """An ArrayRecord file, each of whose records is a JSON object."""

    def __init__(self, path: Path) -> None:
        library = _need("array_record.python.array_record_data_source", "ArrayRecord")
        self._path = path
        with _reading(path):
            self._records = library.ArrayRecordDataSource([str(path)])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = _within(index, len(self))
        name = f"{self._path}:{index + 1}"
        with _reading(self._path):
            data = self._records[index]
        return Record(_parse(data, name), name, index)


class TextFiles:
    """Text files, each a record `{"text": ...}`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: SupportsIndex) -> Record:
        path = self._paths[_within(index, len(self))]
        with _reading(path):
            return Record({"text": path.read_text(encoding="utf-8-sig")}, str(path), 0)


class Concatenation:
    """Sources one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._ends = list(itertools.accumulate(map(len, self._sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = _within(index, len(self))
        number = bisect.bisect_right(self._ends, index)
        source = self._sources[number]
        return source[index - (self._ends[number] - len(source))]


def _expand(path: str | Path) -> list[Path]:
    """Returns the files that a path, a folder or a pattern stands for, by name."""
    plain = Path(path)
    if plain.is_dir():
        found = sorted(file for file in plain.iterdir() if file.suffix.lower() in _KNOWN)
        if not found:
            raise UserError(f"folder {plain} holds no {', '.join(_KNOWN)} file")
        return found
    if plain.exists():
        return [plain]
    matched = sorted(map(Path, glob.glob(str(path), recursive=True)))
    found = [file for file in matched if file.is_file()]
    if not found:
        raise UserError(f"{plain} does not exist, nor does any file match it")
    return found


def _kind_of(path: Path) -> Callable[[Path], Source]:
    """Returns the source for a file: its first bytes decide, then its name."""
    with _reading(path), path.open("rb") as file:
        head = file.read(64)
    suffix, text = path.suffix.lower(), head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        return Parquet
    if head.startswith(_ARRAY_RECORD):
        return ArrayRecord
    if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"PK\x03\x04")):
        raise UserError(f"{path} is compressed; unpack it first")
    if text.startswith(b"[") and suffix in _JSON:
        raise UserError(f"{path} is one JSON array; write one object a line")
    if text.startswith(b"{") or suffix in _JSON:
        return JsonLines
    raise UserError(f"{path} is none of JSON lines, Parquet, ArrayRecord and .txt")


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: not JSON: {error.msg} at character {error.pos + 1}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name}: not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON that can be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: not a JSON object, but {type(value).__name__}")
    return value


@contextlib.contextmanager
def _reading(path: Path) -> Generator[None]:
    """Turns what goes wrong while a file is read into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the libraries raise what they like
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason.splitlines()[0]}") from None


def _need(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise UserError(f"{what} needs {package}: pip install 'lwm[data]'") from None


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _within(index: SupportsIndex, length: int) -> int:
    """Returns an index as an int; raises what ends a loop over a source."""
    number = operator.index(index)
    if not 0 <= number < length:
        raise IndexError(f"record {number} of {length}")
    return number
