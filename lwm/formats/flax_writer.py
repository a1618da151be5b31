"""Writes LWM's streams, which `lwm.formats.flax_file` reads."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

_PIECE = 1 << 30
"""Flax cuts arrays above this many bytes into pieces."""


def write_stream(
    path: Path, arrays: Iterable[tuple[str, np.ndarray]], *, piece: int = _PIECE
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
            file.write(b"\xc6" + length.to_bytes(4, "big") + head)
            for start, begin, stop in parts:
                file.write(start)
                _write_bytes(file, array, begin, stop)


def _value(array: np.ndarray, piece: int) -> tuple[bytes, list[tuple[bytes, int, int]]]:
    """Returns the bytes before an array's pieces, and the header, start and end of each."""
    if array.nbytes <= piece:
        return b"", [(_header(array.shape, array.dtype, array.nbytes), 0, array.nbytes)]
    step = piece // array.itemsize * array.itemsize
    shape = {str(number): size for number, size in enumerate(array.shape)}
    head = b"\x83" + _pack("__msgpack_chunked_array__") + b"\xc3"
    head += _pack("shape") + _pack(shape) + _pack("chunks")
    starts = range(0, array.nbytes, step)
    parts = []
    for number, begin in enumerate(starts):
        stop = min(begin + step, array.nbytes)
        flat = ((stop - begin) // array.itemsize,)
        key = _pack(str(number))
        parts.append((key + _header(flat, array.dtype, stop - begin), begin, stop))
    return head + b"\xdf" + len(starts).to_bytes(4, "big"), parts


def _header(shape: tuple[int, ...], dtype: np.dtype, num_bytes: int) -> bytes:
    """Returns the start of Flax's extension of type 1, up to the elements."""
    inside = b"\x93" + _pack(shape) + _pack(dtype.name)
    inside += b"\xc6" + num_bytes.to_bytes(4, "big")
    return b"\xc9" + (len(inside) + num_bytes).to_bytes(4, "big") + b"\x01" + inside


def _write_bytes(file: BinaryIO, array: np.ndarray, start: int, stop: int) -> None:
    for row in array if math.prod(array.shape[1:]) > 1 else (array,):
        data = np.ascontiguousarray(row).reshape(-1).view(np.uint8).data
        file.write(data[max(0, start) : max(0, stop)])
        start, stop = start - len(data), stop - len(data)


def _pack(value: Any) -> bytes:
    packed = msgpack.packb(value)
    assert packed is not None
    return packed
