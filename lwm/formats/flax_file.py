"""Reads arrays from msgpack files: LWM's streams, one object per array, and Flax's nested maps.

Opening a file reads only the headers and skips the arrays; each is read later from its offset.

A stream holds objects `[path, blob]`: the path a list of names, the blob a value in Flax's
encoding. It has no header and no count, so a file cut between two objects is only noticed by the
tensors that are missing.
"""

import math
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np

from lwm.devices import host_memory
from lwm.errors import UserError
from lwm.formats.msgpack_headers import Cursor, FormatError

_DTYPES = frozenset(
    ["bool", "bfloat16", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
_CHUNKED = "__msgpack_chunked_array__"
"""Key of a map that holds an array of more than 2**30 bytes as flat pieces."""

# Far above any model; a file that declares more is damaged, and would fill the memory.
_MAX_ARRAYS = 100_000
_MAX_DEPTH = 32
_MAX_NAME = 1024
_MAX_DIMS = 8

_SMALL = 1 << 24
"""Arrays up to this many bytes are read whole for a slice, in place of many small reads."""
_PART = 1 << 20
"""Elements that are read at once; they are then still in a processor's cache for the check."""

Check = Callable[[np.ndarray], None]
"""Called with each part of an array, flat, just after it was read."""


@dataclass(frozen=True)
class StoredArray:
    """Shape, type and place in the file of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]
    """Offset in the file and length of each flat piece, in order, in bytes."""

    @property
    def num_bytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def spans(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """Yields offset in the file and length of the pieces of some bytes of the array."""
        for offset, length in self.pieces:
            if start < length and count:
                here = min(count, length - start)
                yield offset + start, here
                start, count = length, count - here
            start -= length


class FlaxFile:
    """The arrays of a file by path: names joined by a slash."""

    def __init__(self, path: Path):
        """Reads the headers.

        Raises:
            UserError: The file is missing, cut off, damaged or of another format.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self.arrays = dict(_arrays(Cursor(file, path)))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        if not self.arrays:
            raise UserError(f"{path} holds no array; give the file of LWM's parameters")
        # A larger file does not stay in the page cache beside arrays of its own size.
        room = host_memory()
        self._is_kept = room is None or 2 * path.stat().st_size < room

    def read(self, name: str, out: np.ndarray, check: Check) -> None:
        """Reads an array into `out`, which has its shape and type and contiguous rows."""
        stored = self.arrays[name]
        rows = [out.reshape(-1)] if out.flags.c_contiguous else out
        with self.path.open("rb", buffering=0) as file:
            for number, row in enumerate(rows):
                self._fill(file, stored, number * row.size, row, check)

    def read_slice(
        self, name: str, index: int, *, axis: int, out: np.ndarray, check: Check
    ) -> None:
        """Reads `array.take(index, axis)` into `out`; of large arrays, only those bytes."""
        stored = self.arrays[name]
        runs = math.prod(stored.shape[:axis])
        if runs > 1 and stored.num_bytes <= _SMALL:
            whole = np.empty(stored.shape, stored.dtype)
            self.read(name, whole, lambda part: None)
            out[...] = whole.take(index, axis)
            check(out.reshape(-1))
            return
        with self.path.open("rb", buffering=0) as file:
            for run, row in enumerate(out.reshape(runs, -1)):
                start = (run * stored.shape[axis] + index) * row.size
                self._fill(file, stored, start, row, check)

    def _fill(
        self, file: RawIOBase, stored: StoredArray, start: int, out: np.ndarray, check: Check
    ) -> None:
        """Reads elements of the flattened array from `start` on."""
        size = stored.dtype.itemsize
        for first in range(0, out.size, _PART):
            part = out[first : first + _PART]
            into = part.view(np.uint8).data
            for offset, length in stored.spans((start + first) * size, len(into)):
                file.seek(offset)
                _read_whole(file, into[:length], self.path)
                into = into[length:]
            assert not into
            check(part)
        if not self._is_kept:
            # All at once: the kernel is slow to drop pages beside those that it reads ahead.
            for offset, length in stored.spans(start * size, out.nbytes):
                _forget(file, offset, length)


def _read_whole(file: RawIOBase, into: memoryview, path: Path) -> None:
    while into:
        count = file.readinto(into)
        if not count:
            raise UserError(f"{path} has become shorter while it was read; fetch it again")
        into = into[count:]


def _forget(file: RawIOBase, start: int, length: int) -> None:
    """Drops bytes that were read from the page cache, before memory runs short."""
    begun = start % mmap.PAGESIZE  # only whole pages are dropped
    start, length = start - begun, length + begun
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_DONTNEED)


def _arrays(cursor: Cursor) -> Iterator[tuple[str, StoredArray]]:
    """Yields the arrays of either kind of file.

    Raises:
        UserError: The file is damaged; the array before the damage is named.
    """
    _refuse_other_formats(cursor)
    last = ""
    try:
        values = _stream(cursor) if cursor.peek(1) == b"\x92" else _whole(cursor)
        seen = set()
        for name, stored in values:
            if name in seen:
                raise FormatError(f"{name} comes twice")
            if len(seen) == _MAX_ARRAYS:
                raise FormatError(f"there are more than {_MAX_ARRAYS:,} arrays")
            seen.add(name)
            last = name
            yield name, stored
    except FormatError as error:
        place = f"after {last}" if last else "in its first array"
        raise UserError(f"{cursor.path} is damaged {place}: {error}; fetch it again") from None


_OTHER_FORMATS = (
    (b"GGUF", "is a GGUF file; give it without a prefix"),
    (b"PK\x03\x04", "is a PyTorch archive or a zip file; save the model as safetensors"),
    *((bytes((0x80, protocol)), "is a pickle, not LWM's parameters") for protocol in range(2, 6)),
    (b"version https://git-lfs", "is a pointer of Git LFS; fetch the file itself with `git lfs`"),
    (b"<!DOCTYPE", "is a web page, not LWM's parameters; fetch the file itself"),
    (b"<html", "is a web page, not LWM's parameters; fetch the file itself"),
)


def _refuse_other_formats(cursor: Cursor) -> None:
    start = cursor.peek(32)
    for magic, problem in _OTHER_FORMATS:
        if start.startswith(magic):
            raise UserError(f"{cursor.path} {problem}")
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
            raise FormatError("an object is no pair of a path and an array")
        names = _value(cursor)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FormatError("an object has no path of names")
        kind, length = cursor.header()
        if kind != "bin":
            raise FormatError("an object holds no bytes")
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
    """Reads one value: maps, lists, names and numbers; of an array, only its place."""
    if depth > _MAX_DEPTH:
        raise FormatError("values are nested too deeply")
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
    # Every value takes at least one byte.
    if count > min(cursor.end - cursor.at, _MAX_ARRAYS):
        raise FormatError(f"{count:,} values are declared in one place")
    return count


def _name(cursor: Cursor, length: int) -> str:
    if length > _MAX_NAME:
        raise FormatError(f"a name has {length:,} letters")
    try:
        return cursor.take(length).decode()
    except UnicodeDecodeError:
        raise FormatError("a name is no text") from None


def _map(cursor: Cursor, length: int, depth: int) -> Any:
    found: dict[str, Any] = {}
    for _ in range(length):
        name = _value(cursor, depth + 1)
        if not isinstance(name, str) or name in found:
            raise FormatError(f"the key {str(name)[:40]!r} of a map is no name, or comes twice")
        found[name] = _value(cursor, depth + 1)
    return _joined(found) if _CHUNKED in found else found


def _joined(found: dict[str, Any]) -> StoredArray:
    """Joins the pieces of a chunked array."""
    shape, chunks = found.get("shape"), found.get("chunks")
    if not isinstance(shape, dict) or not isinstance(chunks, dict):
        raise FormatError("an array in pieces lacks its shape or its pieces")
    numbered = [chunks.get(str(number)) for number in range(len(chunks))]
    pieces = [piece for piece in numbered if isinstance(piece, StoredArray)]
    if not pieces or len(pieces) < len(numbered) or len({piece.dtype for piece in pieces}) > 1:
        raise FormatError("an array in pieces lacks a piece, or they are of several types")
    sizes = _shape([shape.get(str(number)) for number in range(len(shape))])
    spans = tuple(span for piece in pieces for span in piece.pieces)
    whole = StoredArray(sizes, pieces[0].dtype, spans)
    held = sum(length for _, length in whole.pieces)
    if held != whole.num_bytes:
        raise FormatError(f"an array of shape {sizes} in pieces holds {held:,} bytes")
    return whole


def _array(cursor: Cursor) -> StoredArray:
    """Reads an array in Flax's encoding: shape, name of the type, bytes in C order."""
    if cursor.header() != ("array", 3):
        raise FormatError("an array is not made of shape, type and numbers")
    shape, dtype = _shape(_value(cursor)), _value(cursor)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FormatError(f"an array is of the unknown type {str(dtype)[:40]!r}")
    kind, length = cursor.header()
    if kind != "bin":
        raise FormatError("an array holds no bytes")
    stored = StoredArray(shape, np.dtype(dtype), ((cursor.within(length).at, length),))
    cursor.require_end()
    if stored.num_bytes != length:
        raise FormatError(f"an array of shape {shape} and type {dtype} holds {length:,} bytes")
    return stored


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MAX_DIMS:
        raise FormatError("an array has no shape, or too many dimensions")
    if not all(type(size) is int and 0 <= size < 2**48 for size in value):
        raise FormatError(f"an array has the shape {str(value)[:60]}")
    return tuple(value)
