"""GGUF files: their headers, the parts of a split one, and the model of a folder.

The header is read here, not by the `gguf` package, which takes ten times as long for a vocabulary
and gives no useful message for a damaged file.
"""

import contextlib
import itertools
import math
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import is_data
from lwm.limits import RECORD_BYTES, RECORD_LIMIT, limit

_SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")))
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_VALUES, _TEXT = "LWM_MAX_VALUES", RECORD_LIMIT
_LIMITS = {_VALUES: 1 << 22, _TEXT: RECORD_BYTES}
_ALIGNMENT = 32
_MAGIC = b"GGUF"
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Place and type of a tensor in its file; `shape` is in NumPy's order, rows first."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    num_bytes: int


class _Header:
    """A cursor over the header; `reading` names the present entry for messages."""

    def __init__(self, path: Path) -> None:
        """Opens a file, and checks its magic and version.

        Raises:
            UserError: The file cannot be read, or is of another format or version.
        """
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path} cannot be read: it is no file")
        try:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        self.path, self.data, self.at, self.reading = path, memoryview(data), 0, "the file header"
        self.left = {name: limit(name, most) for name, most in _LIMITS.items()}
        self.num_tensors, self.num_values = self._open()

    def fail(self, problem: str) -> UserError:
        return UserError(
            f"{self.path} is truncated or corrupted: {problem} while reading {self.reading}; "
            "fetch the file again"
        )

    def scalars(self, code: str) -> tuple[Any, ...]:
        """Reads little-endian values in the notation of `struct`."""
        try:
            values = struct.unpack_from("<" + code, self.data, self.at)
        except struct.error:
            raise self.fail("the file ends") from None
        self.at += struct.calcsize("<" + code)
        return values

    def scalar(self, code: str) -> Any:
        return self.scalars(code)[0]

    def count(self) -> int:
        """Reads a length, and refuses one beyond the end of the file."""
        size = self.scalar("Q")
        if size > len(self.data) - self.at:
            raise self.fail(f"a length of {size} runs past the end")
        return size

    def charge(self, name: str, number: int) -> None:
        """Counts values or bytes of text, which take many times as much memory as in the file."""
        self.left[name] -= number
        if self.left[name] < 0:
            most = limit(name, _LIMITS[name])
            what = "values" if name == _VALUES else "bytes of text"
            raise UserError(
                f"{self.path} has more than {most:,} {what} in its header, at {self.reading}; if "
                f"it is meant to, raise {name}"
            )

    def string(self) -> str:
        size = self.count()
        self.charge(_TEXT, size)
        self.at += size
        return bytes(self.data[self.at - size : self.at]).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.scalar("I"))
        code = _SCALARS.get(kind)
        if code is None:
            raise self.fail(f"a value of unknown type {kind} appears")
        return self.scalar(code)

    def array(self, kind: int) -> list[Any]:
        size = self.count()
        self.charge(_VALUES, size)
        if kind == _STRING:
            return [self.string() for _ in range(size)]
        code = _SCALARS.get(kind)
        if code is None:
            raise self.fail(f"an array of unknown type {kind} appears")
        return list(self.scalars(f"{size}{code}"))

    def _open(self) -> tuple[int, int]:
        """Checks the magic and version; returns the numbers of tensors and of metadata entries."""
        if bytes(self.data[:4]) != _MAGIC:
            raise UserError(f"{self.path} is not a GGUF file: it does not start with 'GGUF'")
        self.at = 4
        version = self.scalar("I")
        if version not in (2, 3):
            order = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
            raise UserError(f"{self.path} is {order} GGUF; little-endian versions 2 and 3 are read")
        return self.count(), self.count()

    def metadata(self) -> Iterator[tuple[str, Any]]:
        seen = set()
        for index in range(self.num_values):
            self.reading = f"metadata entry {index + 1} of {self.num_values}"
            key = self.string()
            self.reading = f"metadata entry {key!r}"
            if key in seen:
                raise self.fail("a second one of this name appears")
            seen.add(key)
            self.charge(_VALUES, 1)
            yield key, self.value(self.scalar("I"))

    def entries(self, alignment: Any) -> dict[str, TensorEntry]:
        """Reads the table of tensors; checks that each lies in the file, aligned and by itself."""
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self.fail(f"an alignment of {alignment!r} appears")
        found = {}
        for index in range(self.num_tensors):
            self.reading = f"tensor entry {index + 1} of {self.num_tensors}"
            name = self.string()
            self.reading = f"the entry of tensor {name!r}"
            self.charge(_VALUES, 1)
            if name in found:
                raise self.fail("a second one of this name appears")
            dims = self.scalar("I")
            if not 0 < dims <= _MAX_DIMS:
                raise self.fail(f"{dims} dimensions appear")
            shape = tuple(self.scalar("Q") for _ in range(dims))[::-1]
            kind, offset = self.scalar("I"), self.scalar("Q")
            if offset % alignment:
                raise self.fail(f"a place of {offset}, no multiple of {alignment}, appears")
            found[name] = TensorEntry(
                path=self.path,
                name=name,
                shape=shape,
                kind=kind,
                start=offset,
                num_bytes=_num_bytes(self.path, name, shape, kind),
            )
        base = -(-self.at // alignment) * alignment
        placed = {name: self._placed(entry, base) for name, entry in found.items()}
        in_order = sorted(placed.values(), key=lambda entry: (entry.start, entry.num_bytes))
        for one, two in itertools.pairwise(in_order):
            if one.start + one.num_bytes > two.start:
                raise UserError(
                    f"{self.path} is corrupted: tensors {one.name!r} and {two.name!r} overlap; "
                    "fetch the file again"
                )
        return placed

    def _placed(self, entry: TensorEntry, base: int) -> TensorEntry:
        start, size = base + entry.start, len(self.data)
        if start + entry.num_bytes > size:
            raise UserError(
                f"{self.path} is truncated: tensor {entry.name!r} ends at byte "
                f"{start + entry.num_bytes:,} but the file has {size:,}; fetch the file again"
            )
        return replace(entry, start=start)


def _num_bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise UserError(
            f"{path}: tensor {name!r} has unknown quantisation type {kind}: "
            "the file is corrupted, or newer than the installed `gguf` package"
        ) from None
    if shape and shape[-1] % block:
        raise UserError(
            f"{path}: tensor {name!r} has rows of {shape[-1]}, not a multiple of {block}"
        )
    return math.prod(shape) // block * size


def is_gguf(path: Path) -> bool:
    """Returns whether a file is GGUF by its content, whatever its name."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(len(_MAGIC)) == _MAGIC
    return False


def find_gguf(folder: Path) -> Path | None:
    """Returns the GGUF file of a folder's model, or its first part; None if there is none.

    Image projectors and adapters beside it are no models.

    Raises:
        UserError: There are several models; they are listed.
    """
    there = [path for path in sorted(folder.glob("*")) if is_data(path.name) and path.is_file()]
    files = [path for path in there if path.suffix.lower() == ".gguf"]
    files = files or [path for path in there if is_gguf(path)]
    models: dict[str, Path] = {}
    for path in [path for path in files if _is_model(path)] or files:
        part = _PART.fullmatch(path.name)
        models.setdefault(f"{part[1]}-of-{part[3]}" if part else path.name, path)
    if len(models) > 1:
        names = [path.name for path in models.values()]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UserError(
            f"{folder} holds several GGUF models: {', '.join(names[:_SHOWN])}{more}; give one file"
        )
    return next(iter(models.values()), None)


def _is_model(path: Path) -> bool:
    general: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # a damaged file is reported when it is opened
        for key, value in _Header(path).metadata():
            if key.startswith("tokenizer."):
                break  # the vocabulary comes last, and takes longest
            general[key] = value
    kinds = general.get("general.type", "model"), general.get("general.architecture")
    return kinds[0] == "model" and kinds[1] != "clip" and "mmproj" not in path.name.lower()


def first_part(path: Path) -> Path:
    """Returns the first part of a split model if it lies beside this one; else the file itself."""
    part = _PART.fullmatch(path.name)
    first = path.with_name(f"{part[1]}-00001-of-{part[3]}.gguf") if part else path
    return first if first.is_file() else path


Contents = tuple[dict[str, Any], dict[str, TensorEntry]]
"""Metadata and tensors."""


def read_contents(path: Path) -> Contents:
    """Reads the metadata and the table of tensors of a file, or of all parts of a split one.

    Raises:
        UserError: A file is missing or damaged; it is named.
    """
    read = _read(path)
    count = read[0].get("split.count", 0)
    if count in (0, 1):
        return read
    metadata: dict[str, Any] = {}
    entries: dict[str, TensorEntry] = {}
    for number, part in enumerate(_parts(path, count)):
        own, more = read if part == path else _read(part)
        if (own.get("split.no"), own.get("split.count")) != (number, count):
            raise UserError(
                f"{part} is not part {number + 1} of {count}, as its name says; fetch it again"
            )
        if twice := entries.keys() & more.keys():
            raise UserError(f"{part} repeats tensor {min(twice)!r} of another part; fetch it again")
        metadata, entries = metadata or own, entries | more
    if metadata.get("split.tensors.count") not in (None, len(entries)):
        raise UserError(
            f"{path} is incomplete: its {count} parts hold {len(entries)} tensors, not "
            f"{metadata['split.tensors.count']}; fetch them again"
        )
    return metadata, entries


def _read(path: Path) -> Contents:
    header = _Header(path)
    metadata = dict(header.metadata())
    return metadata, header.entries(metadata.get("general.alignment", _ALIGNMENT))


def _parts(path: Path, count: Any) -> list[Path]:
    """Returns the files of a split model, of which `path` is one, by their names."""
    name = _PART.fullmatch(path.name)
    if name is None or type(count) is not int or int(name[3]) != count:
        raise UserError(
            f"{path} is one of {count} parts, but its name does not end in -00001-of-0000N.gguf "
            "with their number, by which the others are found; give it the name that it had"
        )
    parts = [
        path.with_name(f"{name[1]}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    if missing := [part.name for part in parts if not part.is_file()]:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UserError(
            f"{path} is one of {count} parts; {', '.join(missing[:_SHOWN])}{more} must lie beside "
            "it"
        )
    return parts
