"""Reads pickled trees of numbers, texts and arrays without running code from the file.

Opcodes are interpreted one by one, names are never imported, and arrays are built from their bytes
after their sizes are checked. Memory and time are bounded by the size of the file: lengths are
checked against it, nothing is copied twice, and the number of steps is limited.

`pickle.Unpickler` with a safe `find_class` would not do: a file of seven bytes makes it allocate
gigabytes (a large memo index), and nothing limits its steps.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from lwm.errors import UserError
from lwm.formats.pickled_values import (
    AGAIN,
    CALLS,
    MISTRUST,
    NAMES,
    Array,
    Dtype,
    FormatError,
    Name,
    Record,
    record,
    set_items,
    shown,
)

_STEPS_MOST = 200_000
"""Limit of opcodes in a file and of values in the result; a tensor takes about fifty opcodes."""
_DEEPEST = 100
_CODES = {opcode.code: opcode for opcode in pickletools.opcodes}


def read_pickle(path: Path) -> Any:
    """Reads dicts, lists, tuples, texts, bytes, numbers, None and arrays; of any protocol.

    NumPy's arrays and scalars keep their types. JAX arrays become NumPy arrays, and the dicts of
    Flax and `ml_collections` plain dicts. Arrays are read-only views of the bytes read.

    Raises:
        UserError: The file is missing, damaged, or holds or calls anything else.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(_Reader(file, size))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give another file") from None
    except FormatError as error:
        raise UserError(f"{path} {error}") from None


class _Reader:
    """The bytes of a file; refuses lengths beyond its end before anything is allocated."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self.left = file, size, size

    def read(self, count: int) -> bytes:
        if count > self.left:
            raise FormatError(f"is cut off at byte {self._size}; {AGAIN}")
        self.left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline()
        self.left -= len(line)
        return line

    @property
    def place(self) -> int:
        return self._size - self.left


def _read(reader: _Reader) -> Any:
    if not reader.left:
        raise FormatError(f"is empty; {AGAIN}")
    try:
        value = _Machine().run(reader)
        if reader.left:
            raise FormatError(f"goes on for {reader.left} bytes after its end; {AGAIN}")
        return _Tree().of(value)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error):
        # Their messages may be as long as the file.
        raise FormatError(f"is damaged before byte {reader.place}, or no pickle; {AGAIN}") from None


@dataclass
class _Machine:
    """State of the interpreter: a stack with marks, and the memo."""

    stack: list = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    encoded: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    """Encoded texts by identity, so that a text encoded many times costs its bytes once."""

    def run(self, reader: _Reader) -> Any:
        for _ in range(_STEPS_MOST):
            opcode = _CODES[reader.read(1).decode("latin-1")]
            if opcode.name == "STOP":
                (value,) = self.stack
                return value
            step = _OPCODES.get(opcode.name)
            if step is None:
                raise FormatError(
                    f"uses {opcode.name}, which neither arrays nor containers need; {MISTRUST}"
                )
            step(self, opcode.arg.reader(cast(BinaryIO, reader)) if opcode.arg else None)
        raise FormatError(f"has more than {_STEPS_MOST} opcodes; save its arrays as safetensors")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise IndexError
        return self.stack.pop()

    def pop_mark(self) -> list:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(items)

    def update(self, items: list) -> None:
        if type(self.stack[-1]) is not dict:
            raise TypeError
        set_items(self.stack[-1], items)

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple([self.pop() for _ in range(count)][::-1]))

    def put(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def name(self, full: str) -> None:
        if full not in NAMES:
            raise FormatError(
                f"asks for {shown(full.split(' '), '.')}, which is neither array nor container; "
                f"{MISTRUST}"
            )
        self.stack.append(Name(full, NAMES[full]))

    def name_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self.name(f"{module} {name}")

    def call(self) -> None:
        args, name = self.pop(), self.pop()
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise FormatError(f"calls what is no function; {MISTRUST}")
        try:
            make = self.encode if name.meaning == "encode" else CALLS[name.meaning]
            self.stack.append(make(*args))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise FormatError(f"calls {name} as pickling arrays never does; {MISTRUST}") from None

    def new(self) -> None:
        args, name = self.pop(), self.pop()
        if args != ():
            raise TypeError
        self.stack.append(record(name))

    def build(self) -> None:
        state = self.pop()
        target = self.stack[-1]
        if not isinstance(target, Dtype | Array | Record):
            raise FormatError(f"sets the state of what has none; {MISTRUST}")
        target.build(state)

    def encode(self, text: str, encoding: str) -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise TypeError
        if id(text) not in self.encoded:
            self.encoded[id(text)] = text, text.encode(encoding)
        return self.encoded[id(text)][1]


_Step = Callable[[_Machine, Any], Any]
_PUSHED = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT BINSTRING SHORT_BINSTRING UNICODE "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_OPCODES: dict[str, _Step] = {
    **dict.fromkeys(_PUSHED.split(), lambda m, value: m.stack.append(value)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, i: m.stack.append(m.memo[i])),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "LIST": lambda m, _: m.stack.append(m.pop_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_mark())),
    "DICT": lambda m, _: m.stack.append(set_items({}, m.pop_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.pop_mark()),
    "SETITEM": lambda m, _: m.update([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.update(m.pop_mark()),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda m, _: m.name_on_stack(),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.new(),
    "BUILD": lambda m, _: m.build(),
}
"""Actions by opcode; STOP is handled by `run`."""


class _Tree:
    """Replaces stand-ins by real values; containers are copied, so that none is shared."""

    def __init__(self) -> None:
        self._left = _STEPS_MOST
        self._above: set[int] = set()

    def of(self, value: Any, path: tuple = ()) -> Any:
        self._left -= 1
        if self._left < 0:
            raise FormatError(
                f"repeats its parts to more than {_STEPS_MOST} values; save its arrays as "
                "safetensors"
            )
        if isinstance(value, Array):
            return value.real(path)
        if isinstance(value, dict | list | tuple | Record):
            return self._within(value, path)
        if isinstance(value, Name):
            raise FormatError(f"holds {value} itself, which is no value; {MISTRUST}")
        if isinstance(value, Dtype | bytearray):
            raise FormatError("holds a dtype or a bytearray by itself; save arrays instead")
        return value

    def _within(self, value: Any, path: tuple) -> Any:
        if id(value) in self._above:
            raise FormatError(f"holds a container that lies within itself; {MISTRUST}")
        if len(self._above) == _DEEPEST:
            raise FormatError(f"is nested more than {_DEEPEST} deep; {MISTRUST}")
        self._above.add(id(value))
        if isinstance(value, Record):
            made = self.of(value.state[value.content], path)
        elif isinstance(value, dict):
            made = {key: self.of(item, (*path, key)) for key, item in value.items()}
        else:
            made = type(value)(self.of(item, (*path, i)) for i, item in enumerate(value))
        self._above.discard(id(value))
        return made
