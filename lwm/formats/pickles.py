"""Pickled trees of numbers, texts and arrays, read without running anything that they ask for.

Python's unpickler calls whatever a file names. Here the opcodes are walked one by one, a name is
only ever a name, and arrays are put together from their bytes after their sizes are checked. What
a file can cost is bounded by its size: no length is believed before the bytes are there, nothing
is copied twice, and the number of steps is limited.
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
    Fault,
    Name,
    Record,
    record,
    set_items,
    shown,
)

_STEPS_MOST = 200_000
"""Opcodes in a file and values in its result; a model's weights take fifty opcodes a tensor."""
_DEEPEST = 100
_CODES = {opcode.code: opcode for opcode in pickletools.opcodes}


def read_pickle(path: Path) -> Any:
    """Reads dicts, lists, tuples, texts, bytes, numbers, None and arrays; of any protocol.

    Arrays and scalars of NumPy keep their types; those of JAX become NumPy's, and the dicts of
    Flax and `ml_collections` plain ones. Arrays are read-only: they lie in the bytes as read.

    Raises:
        UserError: The file is missing, damaged, or holds or asks for anything else.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(_Reader(file, size))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give another file") from None
    except Fault as fault:
        raise UserError(f"{path} {fault}") from None


class _Reader:
    """The bytes of a file, of which none are asked for beyond the end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self.left = file, size, size

    def read(self, count: int) -> bytes:
        if count > self.left:
            raise Fault(f"is cut off at byte {self._size}; {AGAIN}")
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
        raise Fault(f"is empty; {AGAIN}")
    try:
        value = _Machine().run(reader)
        if reader.left:
            raise Fault(f"goes on for {reader.left} bytes after its end; {AGAIN}")
        return _Tree().of(value)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error):
        # What these say may be as long as the file.
        raise Fault(f"is damaged before byte {reader.place}, or no pickle; {AGAIN}") from None


@dataclass
class _Machine:
    """What the opcodes work on: a stack with marks, and the values that come back later."""

    stack: list = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    encoded: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    """By the identity of a text, so that one encoded again and again costs its bytes once."""

    def run(self, reader: _Reader) -> Any:
        for _ in range(_STEPS_MOST):
            opcode = _CODES[reader.read(1).decode("latin-1")]
            if opcode.name == "STOP":
                (value,) = self.stack
                return value
            step = _OPCODES.get(opcode.name)
            if step is None:
                raise Fault(
                    f"uses {opcode.name}, which neither arrays nor containers need; {MISTRUST}"
                )
            step(self, opcode.arg.reader(cast(BinaryIO, reader)) if opcode.arg else None)
        raise Fault(f"has more than {_STEPS_MOST} opcodes; save its arrays as safetensors")

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
            raise Fault(
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
            raise Fault(f"calls what is no function; {MISTRUST}")
        try:
            make = self.encode if name.meaning == "encode" else CALLS[name.meaning]
            self.stack.append(make(*args))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Fault(f"calls {name} as pickling arrays never does; {MISTRUST}") from None

    def new(self) -> None:
        args, name = self.pop(), self.pop()
        if args != ():
            raise TypeError
        self.stack.append(record(name))

    def build(self) -> None:
        state = self.pop()
        target = self.stack[-1]
        if not isinstance(target, Dtype | Array | Record):
            raise Fault(f"sets the state of what has none; {MISTRUST}")
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
"""What is done for each opcode that may occur, but for STOP."""


class _Tree:
    """Puts real values in the places of stand-ins; containers become new ones, shared by none."""

    def __init__(self) -> None:
        self._left = _STEPS_MOST
        self._above: set[int] = set()

    def of(self, value: Any, path: tuple = ()) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Fault(
                f"repeats its parts to more than {_STEPS_MOST} values; save its arrays as "
                "safetensors"
            )
        if isinstance(value, Array):
            return value.real(path)
        if isinstance(value, dict | list | tuple | Record):
            return self._within(value, path)
        if isinstance(value, Name):
            raise Fault(f"holds {value} itself, which is no value; {MISTRUST}")
        if isinstance(value, Dtype | bytearray):
            raise Fault("holds a dtype or a bytearray by itself; save arrays instead")
        return value

    def _within(self, value: Any, path: tuple) -> Any:
        if id(value) in self._above:
            raise Fault(f"holds a container that lies within itself; {MISTRUST}")
        if len(self._above) == _DEEPEST:
            raise Fault(f"is nested more than {_DEEPEST} deep; {MISTRUST}")
        self._above.add(id(value))
        if isinstance(value, Record):
            made = self.of(value.state[value.content], path)
        elif isinstance(value, dict):
            made = {key: self.of(item, (*path, key)) for key, item in value.items()}
        else:
            made = type(value)(self.of(item, (*path, i)) for i, item in enumerate(value))
        self._above.discard(id(value))
        return made
