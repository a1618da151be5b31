"""Reads pickled trees of numbers, texts and arrays without running code from the file.

Python's `pickle._Unpickler` carries out the few opcodes that arrays and containers need. Names are
looked up in a table and never imported, and arrays are built from their bytes after their sizes are
checked. Memory and time are bounded by the size of the file: lengths are checked against it,
nothing is copied twice, keys are small, and the number of steps is limited.

The faster `pickle.Unpickler` would not do: a file of seven bytes makes it allocate gigabytes (a
large memo index), a key of nested tuples takes it years to hash, and nothing limits its steps.
"""

import math
import pickle
import pickletools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lwm.errors import UserError
from lwm.limits import require_bounded

_BYTES_MOST = 1 << 30
_STEPS_MOST = 200_000
"""Limit of opcodes in a file and of values in the result; a tensor takes about fifty opcodes."""
_DEEPEST, _AXIS_MOST, _AXES_MOST = 100, 1 << 48, 32
_KEY_MOST, _KEY_LENGTH_MOST = 1 << 63, 1 << 12
_MISTRUST, AGAIN = "do not trust this file", "fetch it again"
_SAVE = "save its arrays as safetensors"
_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class FormatError(Exception):
    """A file that is refused, without its path."""

    def __init__(self, fault: str, remedy: str = _MISTRUST) -> None:
        """Takes what is wrong, and what to do."""
        super().__init__(f"{fault}; {remedy}")


# Steps in the wrong order raise these; the messages may be as long as the file.
_DAMAGED = AttributeError, LookupError, OverflowError, TypeError, ValueError, pickle.UnpicklingError


def read_pickle(path: Path) -> Any:
    """Reads dicts, lists, tuples, texts, bytes, numbers, None and arrays; of any protocol.

    NumPy's arrays and scalars keep their types. JAX arrays become NumPy arrays, and the dicts of
    Flax and `ml_collections` plain dicts. Arrays are read-only views of the bytes read.

    Raises:
        UserError: The file is missing, damaged, or holds or calls anything else.
    """
    path = Path(path)
    try:
        require_bounded(path, "LWM_MAX_PICKLE", _BYTES_MOST)
        with path.open("rb") as file:
            return read_stream(file, path.stat().st_size, path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give another file") from None


def read_stream(
    file: BufferedIOBase,
    size: int,
    path: Path,
    opened_by: Callable[[BufferedIOBase, int], "SafeUnpickler"] | None = None,
) -> Any:
    """Reads one pickle of `size` bytes that fills a stream.

    Args:
        file: The stream, at its beginning.
        size: Its bytes.
        path: The file, for messages.
        opened_by: Makes the unpickler; None for that of `read_pickle`.

    Raises:
        UserError: It is damaged, or holds or calls what the unpickler does not know.
    """
    try:
        value = (opened_by or SafeUnpickler)(file, size).load()
        return _real(value, (), iter(range(_STEPS_MOST)))
    except FormatError as error:
        raise UserError(f"{path} {error}") from None
    except _DAMAGED:
        raise UserError(f"{path} is damaged, or no pickle; {AGAIN}") from None


@dataclass(frozen=True)
class Name:
    """A function or class that a file names; never imported."""

    full: str


@dataclass
class _Dtype:
    real: np.dtype

    def build(self, state: Any) -> None:
        """Sets the byte order."""
        if state[2:5] != (None, None, None) or state[1] not in ("<", ">", "|", "="):
            raise FormatError("holds an array of records, which are no numbers")
        if self.real != ml_dtypes.bfloat16:
            self.real = self.real.newbyteorder(state[1])
        elif state[1] == ">":
            raise FormatError("holds bfloat16 of a big-endian machine", "save it as float32")


@dataclass
class _Array:
    """An array or scalar with the bytes of the file, until its sizes are checked."""

    shape: Any = None
    dtype: Any = None
    by_columns: Any = False
    data: Any = None
    is_scalar: bool = False

    def build(self, state: Any) -> None:
        if self.data is not None:
            raise ValueError
        self.shape, self.dtype, self.by_columns, self.data = state[-4:]

    def real(self, path: tuple) -> Any:
        """Returns the array or scalar; `path` is its place in the tree."""
        shape, data, dtype = self.shape, self.data, self.dtype
        if not isinstance(shape, tuple) or len(shape) > _AXES_MOST:
            fault = "has no shape"
        elif not all(type(axis) is int and 0 <= axis < _AXIS_MOST for axis in shape):
            fault = "has an impossible shape"
        elif not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype):
            fault = "has no type or content"
        elif (declared := math.prod(shape) * dtype.real.itemsize) != len(data):
            fault = f"declares {declared:.15g} bytes but holds {len(data)}"
        else:
            flat = np.frombuffer(data, dtype.real) if data else np.empty(0, dtype.real)
            array = flat.reshape(shape, order="F" if self.by_columns else "C")
            array.flags.writeable = False
            return array[()] if self.is_scalar else array
        raise FormatError(f"is damaged: {f'array {_shown(path)}'.strip()} {fault}", AGAIN)


@dataclass
class _Record:
    """A dict or reference of `ml_collections`, and the key of its state that holds the value."""

    content: str
    state: Any = None

    def build(self, state: Any) -> None:
        if self.state is not None or not isinstance(state, dict) or state.get("_ops"):
            raise FormatError("holds a value that is computed from others")
        self.state = state


def _dtype(code: Any, align: Any, copy: Any) -> _Dtype:
    if code == Name("ml_dtypes.bfloat16"):
        return _Dtype(np.dtype(ml_dtypes.bfloat16))
    if not _NUMBERS.fullmatch(code):
        raise FormatError(f"holds an array of {_shown([code])}, which are no numbers")
    return _Dtype(np.dtype(code))


def _reconstruct(name: Any, shape: Any, code: Any) -> _Array:
    if name != Name("numpy.ndarray"):
        raise TypeError
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(shape, dtype, order == "F", data)


def _from_jax(name: Any, args: Any, state: Any, aval: Any) -> _Array:
    return _Array(*state[-4:])


def _dict(items: Any = None) -> dict:
    if items is not None and type(items) is not dict:
        raise TypeError
    return items or {}


_CORE = "numpy.core numpy._core"
CALLS: dict[str, Any] = {
    f"{module}.{name}": call
    for modules, names, call in (
        ("numpy", "ndarray", None),
        ("numpy", "dtype", _dtype),
        (_CORE, "multiarray._reconstruct", _reconstruct),
        (_CORE, "multiarray.scalar", lambda dtype, data: _Array((), dtype, False, data, True)),
        (_CORE, "numeric._frombuffer", _from_buffer),
        ("ml_dtypes", "bfloat16", None),
        # The oldest releases of JAX first.
        ("jax.interpreters.xla jax._src.device_array", "reconstruct_device_array", _from_jax),
        ("jax._src.array", "_reconstruct_array", _from_jax),
        ("collections", "OrderedDict", _dict),
        ("flax.core.frozen_dict", "FrozenDict", _dict),
        ("ml_collections.config_dict.config_dict", "ConfigDict", lambda: _Record("_fields")),
        ("ml_collections.config_dict.config_dict", "FieldReference", lambda: _Record("_value")),
        ("_codecs", "encode", None),
        # Protocols before 3 write Python 2's names.
        ("copyreg copy_reg", "_reconstructor", lambda name, base, state: CALLS[name.full]()),
        ("builtins __builtin__", "bytes", lambda: b""),
        ("builtins __builtin__", "bool dict float int list long object str tuple", None),
    )
    for module in modules.split()
    for name in names.split()
}
"""Allowed names, and the functions to call in their place; `encode` is handled elsewhere."""


class SafeUnpickler(pickle._Unpickler):
    """Python's unpickler without the steps that run code or cost much."""

    pop_mark: Callable[[], list[Any]]
    calls: Mapping[str, Any] = CALLS
    """Allowed names, and the functions to call in their place."""
    steps: Mapping[bytes, Callable[[Any], Any]] = {}
    """Actions by opcode that others do not take, or take otherwise."""

    def __init__(self, file: BufferedIOBase, size: int) -> None:
        super().__init__(file, encoding="latin-1")
        self._file, self._size = file, size
        self.stack, self.metastack = [], []
        self.append = self.stack.append
        self._encoded: dict[int, tuple[str, bytes]] = {}
        """Encoded texts by identity, so that a text encoded many times costs its bytes once."""

    def read(self, count: int) -> bytes:
        """Refuses lengths beyond the end of the file before anything is allocated."""
        if count > self._size - self._file.tell() or len(data := self._file.read(count)) < count:
            raise FormatError(f"is cut off at byte {self._size}", AGAIN)
        return data

    def readline(self) -> bytes:
        """Refuses a line without its end."""
        if not (line := self._file.readline()).endswith(b"\n"):
            raise FormatError(f"is cut off at byte {self._size}", AGAIN)
        return line

    def load(self) -> Any:
        """Returns the value, whose arrays and records are stand-ins; see `_real`."""
        if not self._size:
            raise FormatError("is empty", AGAIN)
        for _ in range(_STEPS_MOST):
            if (opcode := self.read(1)) == pickle.STOP:
                if left := self._size - self._file.tell():
                    raise FormatError(f"goes on for {left} bytes after its end", AGAIN)
                (value,) = *self.metastack, *self.stack
                return value
            step = self.steps.get(opcode) or _STEPS.get(opcode)
            if step is None:
                name = _OPCODES[opcode.decode("latin-1")]
                raise FormatError(f"uses {name}, which neither arrays nor containers need")
            step(self)
        raise FormatError(f"has more than {_STEPS_MOST} opcodes", _SAVE)

    def find_class(self, module: str, name: str) -> Name:
        """Looks a name up; nothing is imported."""
        if (full := f"{module}.{name}") not in self.calls:
            name = _shown([module, name], ".")
            raise FormatError(f"asks for {name}, which is neither array nor container")
        return Name(full)

    def call(self) -> None:
        """Calls what stands for the function of the file."""
        args, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or type(args) is not tuple:
            raise FormatError("calls what is no function")
        call = self.encode if name.full == "_codecs.encode" else self.calls[name.full]
        try:
            self.append(call(*args))
        except (TypeError, ValueError):
            raise FormatError(f"calls {name.full} as neither array nor container needs") from None

    def encode(self, text: Any, encoding: Any) -> bytes:
        """Makes bytes of a text, as protocols before 3 write them."""
        if type(text) is not str or encoding != "latin1":
            raise TypeError
        if id(text) not in self._encoded:
            self._encoded[id(text)] = text, text.encode(encoding)
        return self._encoded[id(text)][1]

    def new_dict(self) -> None:
        """Makes a dict of all since the last mark."""
        items = self.pop_mark()
        self.append(_set_items(items, {}))

    def build(self) -> None:
        """Gives a stand-in its state."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Dtype | _Array | _Record):
            raise FormatError("sets the state of what has none")
        self.stack[-1].build(state)


def _set_items(items: list, target: Any) -> dict:
    """Adds alternating keys and values, if it is cheap to hash and compare the keys."""
    if type(target) is not dict:
        raise TypeError
    for key, value in zip(items[::2], items[1::2], strict=True):
        parts = key if type(key) is tuple and len(key) <= _AXES_MOST else (key,)
        if not all(map(_is_small, parts)):
            raise FormatError("has a key that is no short text or number", "use texts as keys")
        target[key] = value
    return target


def _is_small(part: Any) -> bool:
    if type(part) in (str, bytes):
        return len(part) <= _KEY_LENGTH_MOST
    return part is None or type(part) is bool or (type(part) is int and abs(part) < _KEY_MOST)


_OPCODES = {opcode.code: opcode.name for opcode in pickletools.opcodes}
# These build no more than the file holds; the last two call `find_class`.
_SAFE = (
    "PROTO NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES "
    "SHORT_BINBYTES BINBYTES8 EMPTY_LIST EMPTY_TUPLE EMPTY_DICT MARK LIST TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 APPEND APPENDS POP POP_MARK DUP GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE "
    "GLOBAL STACK_GLOBAL"
)
_CODES: list[bytes] = [getattr(pickle, name) for name in _SAFE.split()]
_STEPS: dict[bytes, Callable[[Any], Any]] = {
    **{code: pickle._Unpickler.dispatch[code[0]] for code in _CODES},
    pickle.FRAME: lambda m: m.read(8),
    pickle.BYTEARRAY8: lambda m: m.append(bytearray(m.read(int.from_bytes(m.read(8), "little")))),
    pickle.DICT: SafeUnpickler.new_dict,
    pickle.SETITEM: lambda m: _set_items([m.stack.pop(), m.stack.pop()][::-1], m.stack[-1]),
    pickle.SETITEMS: lambda m: _set_items(m.pop_mark(), m.stack[-1]),
    pickle.REDUCE: SafeUnpickler.call,
    pickle.NEWOBJ: SafeUnpickler.call,
    pickle.BUILD: SafeUnpickler.build,
}
"""Actions by opcode; STOP is handled by `load`."""


def _real(value: Any, path: tuple, left: Iterator[int]) -> Any:
    """Replaces stand-ins by real values; containers are copied, so that none is shared."""
    if next(left, None) is None:
        raise FormatError(f"repeats its parts to more than {_STEPS_MOST} values", _SAVE)
    if len(path) > _DEEPEST:
        raise FormatError(f"is nested more than {_DEEPEST} deep, or lies within itself")
    if isinstance(value, _Array):
        return value.real(path)
    if isinstance(value, _Record):
        return _real(value.state[value.content], (*path, value.content), left)
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        made = {key: _real(item, (*path, key), left) for key, item in items}
        return made if isinstance(value, dict) else type(value)(made.values())
    if isinstance(value, Name):
        raise FormatError(f"holds {value.full} itself, which is no value")
    if isinstance(value, _Dtype | bytearray):
        raise FormatError("holds a dtype or a bytearray by itself", "save arrays instead")
    return value


def _shown(path: Iterable, by: str = "/") -> str:
    """Formats names of the file for a one-line message."""
    return repr(by.join(str(part)[:60] for part in path)[:120])[1:-1]
