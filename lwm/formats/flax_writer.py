"""Writes LWM's streams, which `lwm.formats.flax_file` reads."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

_PIECE = 1 << 30
"""Flax cuts arrays above this many bytes into pieces."""
_BIN, _EXT = b"\xc4\xc5\xc6", b"\xc7\xc8\xc9"
"""Codes of bytes and of extensions whose lengths have 1, 2 and 4 bytes."""


class Stack:
    """Arrays of one shape as one array, each of which is read when it is written."""

    def __init__(
        self, read: Sequence[Callable[[], np.ndarray]], shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        """Takes the functions that read the arrays, and the arrays' shape and type."""
        self._read, self.shape, self.dtype = read, (len(read), *shape), dtype

    def __getitem__(self, index: int) -> np.ndarray:
        return self._read[index]()


def write_stream(
    path: Path, arrays: Iterable[tuple[str, np.ndarray | Stack]], *, piece: int = _PIECE
) -> None:
    """Writes arrays one after another, as LWM's `StreamingCheckpointer` does.

    One index of an array's first dimension is copied at a time, so that arrays may be mapped from
    files or broadcast.

    Args:
        path: The file to make.
        arrays: Pairs of a path (names joined by a slash) and an array.
        piece: Arrays above this many bytes are cut into pieces.
    """
    with path.open("wb") as file:
        for name, array in arrays:
            file.write(b"\x92" + _pack(name.split("/")))
            head, parts = _value(array, piece)
            length = len(head) + sum(len(start) + stop - begin for start, begin, stop in parts)
            file.write(_sized(_BIN, length) + head)
            for start, begin, stop in parts:
                file.write(start)
                _write_bytes(file, array, begin, stop)


def _value(array: np.ndarray | Stack, piece: int) -> tuple[bytes, list[tuple[bytes, int, int]]]:
    """Returns the bytes before an array's pieces, and the header, start and end of each."""
    width = array.dtype.itemsize
    size = math.prod(array.shape) * width
    if size <= piece:
        return b"", [(_header(array.shape, array.dtype, size), 0, size)]
    step = piece // width * width
    shape = {str(axis): count for axis, count in enumerate(array.shape)}
    head = b"\x83" + _pack("__msgpack_chunked_array__") + b"\xc3"
    head += _pack("shape") + _pack(shape) + _pack("chunks")
    starts = range(0, size, step)
    parts = []
    for number, begin in enumerate(starts):
        stop = min(begin + step, size)
        flat = ((stop - begin) // width,)
        key = _pack(str(number))
        parts.append((key + _header(flat, array.dtype, stop - begin), begin, stop))
    count = msgpack.Packer().pack_map_header(len(starts))
    assert count is not None
    return head + count, parts


def _header(shape: tuple[int, ...], dtype: np.dtype, num_bytes: int) -> bytes:
    """Returns the start of Flax's extension of type 1, up to the elements."""
    inside = b"\x93" + _pack(shape) + _pack(dtype.name)
    inside += _sized(_BIN, num_bytes)
    return _sized(_EXT, len(inside) + num_bytes) + b"\x01" + inside


def _sized(codes: bytes, length: int) -> bytes:
    """Returns the shortest header of a value of this length."""
    width, code = next((w, c) for w, c in zip((1, 2, 4), codes, strict=True) if length < 1 << 8 * w)
    return bytes([code]) + length.to_bytes(width, "big")


def _write_bytes(file: BinaryIO, array: np.ndarray | Stack, start: int, stop: int) -> None:
    """Writes some bytes of an array; of a stack, only what holds them is read."""
    row = math.prod(array.shape[1:]) * array.dtype.itemsize
    if isinstance(array, np.ndarray) and row <= array.dtype.itemsize:
        file.write(_bytes_of(array)[start:stop])
        return
    for index in range(start // row, -(-stop // row)):
        begin = index * row
        file.write(_bytes_of(array[index])[max(0, start - begin) : stop - begin])


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _pack(value: Any) -> bytes:
    packed = msgpack.packb(value)
    assert packed is not None
    return packed
