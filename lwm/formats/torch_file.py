"""Reads tensors in PyTorch's files without PyTorch, and without running code from the file.

A file of `torch.save` (since PyTorch 1.6) is a zip archive: one pickle names the tensors and the
parts of the archive that hold their bytes, which are not compressed. `lwm.formats.pickles` reads
the pickle; tensors are views of the mapped file, made after all sizes are checked.
"""

import functools
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lwm.errors import UserError
from lwm.formats.lazy import LazyArrays
from lwm.formats.pickles import AGAIN, CALLS, FormatError, Name, SafeUnpickler, read_stream

_PICKLE_MOST = 1 << 26
"""Bytes of the pickle; a tensor takes about 200."""
_AXES_MOST = 8
_OLD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Beginning of the files of PyTorch before 1.6."""
_SAVE_AGAIN = "save its tensors as safetensors, or with torch.save"
_DAMAGED = (
    zipfile.BadZipFile,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""Errors of `zipfile` with files that are no archive, or use features that PyTorch does not."""
_TYPES = {
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Double": np.dtype("<f8"),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}


class _Storage(NamedTuple):
    """A part of the archive with the numbers of one tensor, or of several."""

    dtype: np.dtype
    start: int
    """Byte of the file at which it begins."""
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; the strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def within(self, file: np.ndarray) -> np.ndarray:
        """Returns the tensor as a read-only view of the file's bytes."""
        dtype = self.storage.dtype
        start = self.storage.start + self.offset * dtype.itemsize
        strides = [step * dtype.itemsize for step in self.strides]
        view = np.ndarray(self.shape, dtype, file.data, start if self.size else 0, strides)
        view.flags.writeable = False
        return view

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    sizes = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in sizes):
        raise TypeError
    if len(shape) != len(strides) or len(shape) > _AXES_MOST:
        raise ValueError
    made = _Tensor(storage, offset, tuple(shape), tuple(strides))
    reach = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    # A view may repeat numbers by strides of 0, and be far larger than what it views.
    if made.size > storage.count or (made.size and offset + reach >= storage.count):
        raise FormatError(f"is damaged: a tensor of {made.shape} exceeds its part", AGAIN)
    return made


class _Unpickler(SafeUnpickler):
    """Reads the pickle of an archive; parts that it names must be there, and of its sizes."""

    calls = CALLS | {
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        # Settings of a training beside the weights, which are not read.
        "argparse.Namespace": dict,
        **{f"torch.{name}Storage": dtype for name, dtype in _TYPES.items()},
    }

    def __init__(self, file: BufferedIOBase, size: int, *, archive: "_Archive") -> None:
        super().__init__(file, size)
        self._archive = archive

    def storage(self) -> None:
        kind, storage, key, _, count = self.stack.pop()
        if kind != "storage" or not isinstance(storage, Name) or type(key) is not str:
            raise TypeError
        dtype = self.calls[storage.full]
        if not isinstance(dtype, np.dtype) or type(count) is not int:
            raise TypeError
        start, size = self._archive.place(f"data/{key}")
        if size != count * dtype.itemsize:
            raise FormatError(f"is damaged: part {key!r} has {size} bytes", AGAIN)
        self.append(_Storage(dtype, start, count))

    def set_state(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], dict):  # versions of modules, or settings
            return
        self.append(state)
        self.build()

    steps = MappingProxyType({pickle.BINPERSID: storage, pickle.BUILD: set_state})


class _Archive:
    """Places of the parts of a zip archive in the bytes of its file."""

    def __init__(self, path: Path, file: np.ndarray) -> None:
        self._file = file
        with zipfile.ZipFile(path) as archive:
            parts = {part.filename: part for part in archive.infolist()}
        if any("/code/" in name or name.endswith("/constants.pkl") for name in parts):
            raise FormatError("is TorchScript, which holds code", _SAVE_AGAIN)
        found = [name for name in parts if name.endswith("/data.pkl")]
        if len(found) != 1:
            raise FormatError("is no file of torch.save", "give another file")
        self._top, self._parts = found[0].removesuffix("data.pkl"), parts
        if f"{self._top}byteorder" in parts and self.read("byteorder") != b"little":
            raise FormatError("is of a big-endian machine", _SAVE_AGAIN)

    def place(self, name: str) -> tuple[int, int]:
        """Returns the first byte of a part, and its size."""
        part = self._parts.get(self._top + name)
        if part is None:
            raise FormatError(f"is damaged: it lacks part {name[:60]!r}", AGAIN)
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
            raise FormatError("is compressed, as torch.save does not write it", _SAVE_AGAIN)
        header = bytes(self._file[part.header_offset : part.header_offset + 30])
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = part.header_offset + 30 + lengths
        if header[:4] != b"PK\3\4" or start + part.file_size > len(self._file):
            raise FormatError("is damaged: it is cut off", AGAIN)
        return start, part.file_size

    def read(self, name: str) -> bytes:
        """Returns the bytes of a small part."""
        start, size = self.place(name)
        if size > _PICKLE_MOST:
            raise FormatError(f"has {size:,} bytes beside its tensors", _SAVE_AGAIN)
        return bytes(self._file[start : start + size])


def is_torch(path: Path) -> bool:
    """Returns whether a file begins as one of `torch.save`, of now or before PyTorch 1.6."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_OLD))
    except OSError:
        return False
    return beginning == _OLD or beginning[:4] == b"PK\3\4"


def open_torch(path: Path) -> LazyArrays:
    """Opens a file of `torch.save` that holds tensors in dicts or lists.

    Names are the keys on the way to a tensor with `.` between; all else in the file is ignored.

    Raises:
        UserError: The file is missing, damaged, TorchScript, of PyTorch before 1.6, or holds or
            calls anything but containers, numbers, texts and tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            if stream.read(len(_OLD)) == _OLD:
                raise FormatError("is of PyTorch before 1.6", f"{_SAVE_AGAIN} of a later version")
        file = np.memmap(path, np.uint8, "r")
        archive = _Archive(path, file)
        data = archive.read("data.pkl")
    except FormatError as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give another file") from None
    except _DAMAGED:
        raise UserError(f"{path} is damaged, or no file of torch.save; {AGAIN}") from None
    opened_by = functools.partial(_Unpickler, archive=archive)
    tree = read_stream(BytesIO(data), len(data), path, opened_by)
    tensors = dict(_flat(tree, ""))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return LazyArrays(shapes, lambda name: tensors[name].within(file))


def _flat(value: Any, name: str) -> Iterator[tuple[str, _Tensor]]:
    """Yields the tensors of a tree, whose depth is limited, with their names."""
    if isinstance(value, _Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple) and not isinstance(value, _Storage):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
