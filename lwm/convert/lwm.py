"""LWM's released format: a stream of msgpack objects, one for each tensor.

Every object is `[path, blob]`: the path a list of names, the blob an array as Flax writes it.
The format has no header and no count, so a stream cut between two objects is only noticed by
the tensors that are missing.
"""

from collections.abc import Iterable
from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import msgpack
import numpy as np

from lwm.errors import UserError

_ARRAY = 1
"""Flax's msgpack extension type for an array: shape, name of its type, bytes in C order."""


def read_lwm(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a text model, those of stacked layers (`scan_layers`) taken apart.

    Raises:
        UserError: The file is missing, cut off or something else.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, array in _read_stream(path):
        head, stacked, tail = name.partition("scan_decoder/")
        if stacked:
            tensors |= {f"{head}{layer}/{tail}": part for layer, part in enumerate(array)}
        else:
            tensors[name] = array
    return tensors


def _read_stream(path: Path) -> Iterable[tuple[str, np.ndarray]]:
    if not path.is_file():
        raise UserError(f"{path} is no file; give the path of LWM's parameters")
    last = "its first tensor"
    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(file, max_buffer_size=0, raw=False)
        try:
            for key, blob in unpacker:
                name = "/".join(key)
                yield name, _array(msgpack.unpackb(blob, raw=False, ext_hook=msgpack.ExtType))
                last = f"what follows tensor {name}"
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise UserError(f"{path} cannot be read at {last}: {error}") from None
        if unpacker.tell() != path.stat().st_size:
            raise UserError(f"{path} is cut off in {last}; fetch it again")


def _array(value) -> np.ndarray:
    if isinstance(value, dict):  # Flax cuts arrays of more than 2**30 bytes into flat pieces.
        shape = [value["shape"][str(i)] for i in range(len(value["shape"]))]
        pieces = [_array(value["chunks"][str(i)]) for i in range(len(value["chunks"]))]
        return np.concatenate(pieces).reshape(shape)
    if not isinstance(value, msgpack.ExtType) or value.code != _ARRAY:
        raise ValueError("not an array")
    shape, dtype, data = msgpack.unpackb(value.data, raw=False)
    return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)
