"""Files of arrays in msgpack: LWM's streams of one object for each array, and Flax's nested maps.

Only the headers are read to find out what a file holds; arrays are passed over, and read later
from where they lie.

A stream holds objects `[path, blob]`, the path a list of names and the blob a value as Flax writes
it, in bytes. It has no header and no count, so one that is cut between two objects is only noticed
by the tensors that are missing.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np

from lwm.devices import host_memory
from lwm.errors import UserError
from lwm.formats.msgpack_headers import Cursor, Fault

_DTYPES = frozenset(
    ["bool", "bfloat16", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
_CHUNKED = "__msgpack_chunked_array__"
"""Marks a map that stands for an array of more than 2**30 bytes, cut into flat pieces."""

# No model comes near these; a file that declares more is damaged, and would fill the memory.
_MAX_ARRAYS = 100_000
_MAX_DEPTH = 32
_MAX_NAME = 1024
_MAX_DIMS = 8

_SMALL = 1 << 24
"""Bytes up to which an array is read whole for one of its slices, in place of many small reads."""


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies in a file, in the order of its flat pieces, and what it is."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]
    """Offset in the file and length of each piece, in bytes."""

    @property
    def num_bytes(self) -> int:
        """How many bytes the array has."""
        return math.prod(self.shape) * self.dtype.itemsize


class FlaxFile:
    """The arrays of one file by their paths, names joined by a slash."""

    def __init__(self, path: Path):
        """Finds out what the file holds.

        Raises:
            UserError: The file is missing, cut off, damaged or something else.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self.arrays = dict(_arrays(Cursor(file, path)))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        if not self.arrays:
            raise UserError(f"{path} holds no array; give the file of LWM's parameters")
        # Beside arrays of its own size, a larger file could not stay in the memory anyway.
        room = host_memory()
        self._is_kept = room is None or 2 * path.stat().st_size < room

    def read(self, name: str, out: np.ndarray) -> None:
        """Reads an array whole into another of its shape and type; each row of it lies in order."""
        stored = self.arrays[name]
        rows = [out.reshape(-1)] if out.flags.c_contiguous else out
        with self.path.open("rb", buffering=0) as file:
            for number, row in enumerate(rows):
                self._fill(file, stored, number * row.size, row)

    def read_slice(self, name: str, index: int, *, axis: int, out: np.ndarray) -> None:
        """Reads `array.take(index, axis)`, and of large arrays no more of the file than that."""
        stored = self.arrays[name]
        runs = math.prod(stored.shape[:axis])
        if runs > 1 and stored.num_bytes <= _SMALL:
            whole = np.empty(stored.shape, stored.dtype)
            self.read(name, whole)
            out[...] = whole.take(index, axis)
            return
        with self.path.open("rb", buffering=0) as file:
            for run, part in enumerate(out.reshape(runs, -1)):
                self._fill(file, stored, (run * stored.shape[axis] + index) * part.size, part)

    def _fill(self, file: RawIOBase, stored: StoredArray, start: int, out: np.ndarray) -> None:
        """Reads the numbers from `start` on, of the array laid flat."""
        into = out.view(np.uint8).data
        at = start * stored.dtype.itemsize
        for offset, length in stored.pieces:
            if at < length and into:
                part = into[: length - at]
                file.seek(offset + at)
                _read_whole(file, part, self.path)
                if not self._is_kept:
                    _forget(file, offset + at, len(part))
                into, at = into[len(part) :], length
            at -= length
        assert not into


def _read_whole(file: RawIOBase, into: memoryview, path: Path) -> None:
    while into:
        count = file.readinto(into)
        if not count:
            raise UserError(f"{path} has become shorter while it was read; fetch it again")
        into = into[count:]


def _forget(file: RawIOBase, start: int, length: int) -> None:
    """Lets the system use the memory again that holds what was read, before it runs short."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_DONTNEED)


def _arrays(cursor: Cursor) -> Iterator[tuple[str, StoredArray]]:
    """Yields the arrays of either kind of file.

    Raises:
        UserError: What is wrong, and after which array.
    """
    _refuse_other_formats(cursor)
    last, count = "", 0
    try:
        values = _stream(cursor) if cursor.peek(1) == b"\x92" else _whole(cursor)
        seen = set()
        for name, stored in values:
            count += 1
            if name in seen:
                raise Fault(f"{name} comes twice")
            if count > _MAX_ARRAYS:
                raise Fault(f"there are more than {_MAX_ARRAYS:,} arrays")
            seen.add(name)
            last = name
            yield name, stored
    except Fault as fault:
        place = f"after {last}" if last else "in its first array"
        raise UserError(f"{cursor.path} is damaged {place}: {fault}; fetch it again") from None


_OTHER_FORMATS = (
    (b"GGUF", "is a GGUF file; give it without a prefix, with a name ending in .gguf"),
    (b"PK\x03\x04", "is a PyTorch archive or a zip file; save the model as safetensors"),
    *((bytes((0x80, protocol)), "is a pickle, not LWM's parameters") for protocol in range(2, 6)),
    (b"version https://git-lfs", "is a pointer of Git LFS; fetch the file itself with `git lfs`"),
    (b"<!DOCTYPE", "is a web page, not LWM's parameters; fetch the file itself"),
    (b"<html", "is a web page, not LWM's parameters; fetch the file itself"),
)


def _refuse_other_formats(cursor: Cursor) -> None:
    start = cursor.peek(32)
    for magic, what in _OTHER_FORMATS:
        if start.startswith(magic):
            raise UserError(f"{cursor.path} {what}")
    if start[8:9] == b"{" and start[:8] != b"{" * 8:
        raise UserError(f"{cursor.path} is a safetensors file; give its folder with config.json")
    if not start:
        raise UserError(f"{cursor.path} is empty; fetch it again")
    if start[0] != 0x92 and not (0x80 < start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        raise UserError(
            f"{cursor.path} is no model: neither a GGUF file nor LWM's or Flax's msgpack"
        )


def _stream(cursor: Cursor) -> Iterator[tuple[str, StoredArray]]:
    while cursor.at < cursor.end:
        kind, length = cursor.header()
        if (kind, length) != ("array", 2):
            raise Fault("an object is no pair of a path and an array")
        names = _value(cursor)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Fault("an object has no path of names")
        kind, length = cursor.header()
        if kind != "bin":
            raise Fault("an object holds no bytes")
        inside = cursor.within(length)
        yield from _leaves(_value(inside), "/".join(names))
        inside.require_end()


def _whole(cursor: Cursor) -> Iterator[tuple[str, StoredArray]]:
    tree = _value(cursor)
    cursor.require_end()
    yield from _leaves(tree, "")


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, StoredArray]]:
    if isinstance(tree, StoredArray):
        yield prefix, tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{prefix}/{name}" if prefix else name)


def _value(cursor: Cursor, depth: int = 0) -> Any:
    """Reads one value: maps, lists, names and numbers as they are, of an array only the place."""
    if depth > _MAX_DEPTH:
        raise Fault("values are nested too deeply")
    kind, content = cursor.header()
    if kind == "array":
        count = _plausible(cursor, content)
        return [_value(cursor, depth + 1) for _ in range(count)]
    if kind == "map":
        return _map(cursor, _plausible(cursor, 2 * content) // 2, depth)
    if kind == "str":
        return _name(cursor, content)
    if kind == "ext":
        code, length = content
        inside = cursor.within(length)
        return _array(inside) if code == 1 else None  # 2 and 3 are Python's and NumPy's numbers
    if kind == "bin":
        cursor.within(content)
        return None
    return content


def _plausible(cursor: Cursor, count: int) -> int:
    # Every value has a byte at least.
    if count > min(cursor.end - cursor.at, _MAX_ARRAYS):
        raise Fault(f"{count:,} values are declared in one place")
    return count


def _name(cursor: Cursor, length: int) -> str:
    if length > _MAX_NAME:
        raise Fault(f"a name has {length:,} letters")
    try:
        return cursor.take(length).decode()
    except UnicodeDecodeError:
        raise Fault("a name is no text") from None


def _map(cursor: Cursor, length: int, depth: int) -> Any:
    found: dict[str, Any] = {}
    for _ in range(length):
        name = _value(cursor, depth + 1)
        if not isinstance(name, str) or name in found:
            raise Fault(f"the key {str(name)[:40]!r} of a map is no name, or comes twice")
        found[name] = _value(cursor, depth + 1)
    return _joined(found) if _CHUNKED in found else found


def _joined(found: dict[str, Any]) -> StoredArray:
    """Makes one array of the flat pieces of a chunked one."""
    shape, chunks = found.get("shape"), found.get("chunks")
    if not isinstance(shape, dict) or not isinstance(chunks, dict):
        raise Fault("an array in pieces lacks its shape or its pieces")
    numbered = [chunks.get(str(number)) for number in range(len(chunks))]
    pieces = [piece for piece in numbered if isinstance(piece, StoredArray)]
    if not pieces or len(pieces) < len(numbered) or len({piece.dtype for piece in pieces}) > 1:
        raise Fault("an array in pieces lacks a piece, or they are of several types")
    sizes = _shape([shape.get(str(number)) for number in range(len(shape))])
    spans = tuple(span for piece in pieces for span in piece.pieces)
    whole = StoredArray(sizes, pieces[0].dtype, spans)
    held = sum(length for _, length in whole.pieces)
    if held != whole.num_bytes:
        raise Fault(f"an array of shape {sizes} in pieces holds {held:,} bytes")
    return whole


def _array(cursor: Cursor) -> StoredArray:
    """Reads what Flax says of an array: its shape, the name of its type, its bytes in C order."""
    if cursor.header() != ("array", 3):
        raise Fault("an array is not made of shape, type and numbers")
    shape, dtype = _shape(_value(cursor)), _value(cursor)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise Fault(f"an array is of the unknown type {str(dtype)[:40]!r}")
    kind, length = cursor.header()
    if kind != "bin":
        raise Fault("an array holds no bytes")
    stored = StoredArray(shape, np.dtype(dtype), ((cursor.within(length).at, length),))
    cursor.require_end()
    if stored.num_bytes != length:
        raise Fault(f"an array of shape {shape} and type {dtype} holds {length:,} bytes")
    return stored


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MAX_DIMS:
        raise Fault("an array has no shape, or too many dimensions")
    if not all(type(size) is int and 0 <= size < 2**48 for size in value):
        raise Fault(f"an array has the shape {str(value)[:60]}")
    return tuple(value)
