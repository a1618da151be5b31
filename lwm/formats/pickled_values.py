"""Stand-ins for the values of a pickle while it is read: names, types, arrays, records.

A name in the file is looked up in a table here and never imported. An array keeps its bytes until
its path is known and its sizes are checked.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

_AXIS_MOST, _AXES_MOST = 1 << 48, 32
_KEY_MOST = 1 << 63

MISTRUST = "do not trust this file"
AGAIN = "fetch it again"

_CONFIGS = "ml_collections.config_dict.config_dict"
# Allowed names, and their meaning here.
NAMES = {
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "ml_dtypes bfloat16": "bfloat16",
    "_codecs encode": "encode",
    "collections OrderedDict": "dict",
    "flax.core.frozen_dict FrozenDict": "dict",
    f"{_CONFIGS} ConfigDict": "_fields",
    f"{_CONFIGS} FieldReference": "_value",
    # The oldest releases of JAX first.
    "jax.interpreters.xla reconstruct_device_array": "jax",
    "jax._src.device_array reconstruct_device_array": "jax",
    "jax._src.array _reconstruct_array": "jax",
}
for _module in ("numpy.core", "numpy._core"):
    NAMES |= {
        f"{_module}.multiarray _reconstruct": "reconstruct",
        f"{_module}.multiarray scalar": "scalar",
        f"{_module}.numeric _frombuffer": "frombuffer",
    }
# Protocols before 3 write Python 2's names.
for _module in ("builtins", "__builtin__"):
    NAMES[f"{_module} bytes"] = "bytes"
    for _type in ("bool", "dict", "float", "int", "list", "long", "object", "str", "tuple"):
        NAMES[f"{_module} {_type}"] = "type"
for _module in ("copyreg", "copy_reg"):
    NAMES[f"{_module} _reconstructor"] = "new"

_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class FormatError(Exception):
    """A file is not as the format has it; the message follows the path of the file."""


@dataclass(frozen=True)
class Name:
    """A function or class that a file names, and its meaning here."""

    full: str
    meaning: str

    def __str__(self) -> str:
        return self.full.replace(" ", ".")


@dataclass
class Dtype:
    """A type of numbers in NumPy's notation, or `bfloat16`."""

    code: str

    def build(self, state: Any) -> None:
        """Sets the byte order."""
        order, rest = state[1], state[2:5]
        if rest != (None, None, None) or order not in ("<", ">", "|", "="):
            raise FormatError(f"holds an array of records, which are no numbers; {MISTRUST}")
        if self.code != "bfloat16":
            self.code = order + self.code.lstrip("<>|=")
        elif order == ">":
            raise FormatError("holds bfloat16 of a big-endian machine; save it as float32")

    def real(self) -> np.dtype:
        """Returns NumPy's type."""
        return np.dtype(ml_dtypes.bfloat16 if self.code == "bfloat16" else self.code)


@dataclass
class Array:
    """An array or scalar with the bytes of the file."""

    dtype: Any = None
    shape: Any = None
    by_columns: Any = False
    data: Any = None
    is_scalar: bool = False

    def build(self, state: Any) -> None:
        """Sets shape, type, order and bytes."""
        if self.data is not None:
            raise ValueError
        self.shape, self.dtype, self.by_columns, self.data = state[-4:]

    def real(self, path: tuple) -> Any:
        """Returns the array or scalar; `path` is its place in the tree.

        Raises:
            FormatError: Its sizes do not fit its bytes.
        """
        shape = self.shape
        if not isinstance(shape, tuple) or len(shape) > _AXES_MOST:
            raise FormatError(f"is damaged: {_array(path)} has no shape; {AGAIN}")
        if not all(type(axis) is int and 0 <= axis < _AXIS_MOST for axis in shape):
            raise FormatError(f"is damaged: {_array(path)} has an impossible shape; {AGAIN}")
        data = isinstance(self.data, bytes | bytearray)
        if not data or not isinstance(self.dtype, Dtype):
            raise FormatError(f"is damaged: {_array(path)} has no type or content; {AGAIN}")
        dtype = self.dtype.real()
        declared, held = math.prod(shape) * dtype.itemsize, len(self.data)
        if declared != held:
            raise FormatError(
                f"is damaged: {_array(path)} declares {declared} bytes but holds {held}; {AGAIN}"
            )
        flat = np.frombuffer(self.data, dtype) if held else np.empty(0, dtype)
        array = flat.reshape(shape, order="F" if self.by_columns else "C")
        array.flags.writeable = False
        return array[()] if self.is_scalar else array


@dataclass
class Record:
    """A dict or reference of `ml_collections`."""

    content: str
    """Key of the state that holds the value."""
    state: Any = None

    def build(self, state: Any) -> None:
        """Sets the attributes."""
        if self.state is not None or not isinstance(state, dict) or state.get("_ops"):
            raise FormatError(f"holds a value that is computed from others; {MISTRUST}")
        self.state = state


def _array(path: tuple) -> str:
    return f"array {shown(path)}".strip()


def _dtype(code: Any, align: bool, copy: bool) -> Dtype:
    if isinstance(code, Name) and code.meaning == "bfloat16":
        return Dtype("bfloat16")
    if not _NUMBERS.fullmatch(code):
        raise FormatError(f"holds an array of {shown([code])}, which are no numbers; {MISTRUST}")
    return Dtype(code)


def _reconstruct(name: Name, shape: tuple, code: bytes) -> Array:
    if name.meaning != "ndarray":
        raise TypeError
    return Array()


def _scalar(dtype: Dtype, data: bytes) -> Array:
    return Array(dtype, (), False, data, is_scalar=True)


def _from_buffer(data: Any, dtype: Dtype, shape: tuple, order: str) -> Array:
    return Array(dtype, shape, order == "F", data)


def _from_jax(name: Name, args: tuple, state: tuple, aval: dict) -> Array:
    if name.meaning != "reconstruct":
        raise TypeError
    (array := Array()).build(state)
    return array


def _dict(items: Any = None) -> dict:
    if items is not None and not isinstance(items, dict):
        raise TypeError
    return {} if items is None else items


def record(name: Any, base: Any = None, state: None = None) -> Record:
    """Makes an object without attributes."""
    if not isinstance(name, Name) or name.meaning not in ("_fields", "_value"):
        raise FormatError(f"makes an object that is neither array nor container; {MISTRUST}")
    return Record(name.meaning)


CALLS: dict[str, Callable[..., Any]] = {
    "dtype": _dtype,
    "reconstruct": _reconstruct,
    "scalar": _scalar,
    "frombuffer": _from_buffer,
    "jax": _from_jax,
    "dict": _dict,
    "bytes": lambda: b"",
    "new": record,
}
"""Functions by the meaning of the name that a file calls; `encode` is handled elsewhere."""


def set_items(target: dict, items: list) -> dict:
    """Adds alternating keys and values."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing other keys can take long.
        parts = key if type(key) is tuple and len(key) <= _AXES_MOST else (key,)
        if not all(
            type(part) in (str, bytes, bool, type(None))
            or (type(part) is int and abs(part) < _KEY_MOST)
            for part in parts
        ):
            raise FormatError("has a key that is neither text nor small number; use texts as keys")
        target[key] = value
    return target


def shown(path: Iterable, by: str = "/") -> str:
    """Formats names of the file for a one-line message."""
    return repr(by.join(str(part)[:60] for part in path)[:120])[1:-1]
