"""An engine on the devices of several processes: the first one decides, the others repeat.

Every process holds a part of the mesh and has to launch the same programs in the same order.
Process 0 serves requests. It sends each call of `Programs` through the key-value store of JAX's
coordination service before it makes the call itself; no clock, queue or file of another process
decides anything. If a process dies, the others end, see `lwm.distributed`.
"""

import atexit
import io
import pickle
import time
import weakref
from typing import Any

import jax
from jax.sharding import set_mesh

from lwm.distributed import explain, has_left
from lwm.generate.programs import Programs

_REPEATED = (
    *("reset", "enlarge", "warm_up", "read", "score", "rank", "copy", "seat", "empty", "write"),
)
_CLOSE = "close"
_PART = 1 << 20
"""Bytes of a value in the store at most; gRPC limits a message to four times that."""
_EVERY = 64
"""Calls after which the others say how far they are, and those that all have made are deleted."""
_POLL = 1.0
"""Seconds that a process waits for a call before it looks whether process 0 has left."""
_GRACE = 20.0
"""Seconds that process 0 has to give up a call that failed on another process."""


class Leader:
    """The programs of process 0: each call is sent to the other processes before it is made."""

    def __init__(self, programs: Programs, number: int):
        """Starts a sequence of calls, which ends with this object, or with the program.

        Args:
            programs: The programs.
            number: That of the engine; all processes make their engines in the same order.
        """
        self._programs, self._calls = programs, _Calls(number)
        weakref.finalize(self, self._calls.close)
        atexit.register(self._calls.close)  # before the processes part, see `lwm.distributed`

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._programs, name)
        if name not in _REPEATED:
            return found

        def call(*arguments: Any) -> Any:
            self._calls.send(name, *arguments)
            return found(*arguments)

        return call

    def close(self) -> None:
        """Ends `follow` on the other processes."""
        self._calls.close()


class _Calls:
    """The calls of an engine in the store, numbered from 0."""

    def __init__(self, engine: int):
        self._engine, self._count, self._deleted, self._is_closed = engine, 0, 0, False

    def send(self, name: str, *arguments: Any) -> None:
        data = pickle.dumps((name, arguments), protocol=5)
        parts = [data[at : at + _PART] for at in range(0, len(data), _PART)]
        for number, part in enumerate(parts):
            is_last = bytes([number == len(parts) - 1])
            _store().key_value_set_bytes(_key(self._engine, self._count, number), is_last + part)
        self._count += 1
        if self._count % _EVERY == 0:
            self._delete()

    def close(self) -> None:
        if not self._is_closed and _store() is not None:  # else the processes have parted
            self._is_closed = True
            self.send(_CLOSE)

    def _delete(self) -> None:
        """Deletes the calls that all processes have made."""
        done = [int(count) for _, count in _store().key_value_dir_get(_key(self._engine, "done"))]
        if len(done) == jax.process_count() - 1:
            for number in range(self._deleted, min(done)):
                _store().key_value_delete(_key(self._engine, number, ""))
            self._deleted = min(done)


def follow(programs: Programs, number: int) -> None:
    """Makes the calls of process 0 until it closes the engine of this number.

    Raises:
        Exception: A call has failed here and not on process 0.
    """
    count, failure = 0, None
    with set_mesh(programs.mesh):
        while True:
            name, arguments = _receive(number, count, failure)
            count += 1
            if name == _CLOSE:
                return
            if failure is not None and name != "reset":
                raise failure
            try:
                getattr(programs, name)(*arguments)
                failure = None
            except Exception as error:
                explain()
                failure = error
            if count % _EVERY == 0:
                key = _key(number, "done", jax.process_index())
                _store().key_value_set(key, str(count), allow_overwrite=True)


def _receive(engine: int, count: int, failure: Exception | None) -> tuple[str, tuple[Any, ...]]:
    """Waits for a call; the engine is closed, too, if process 0 has left without a word."""
    begun, parts = time.monotonic(), []
    while not (parts and parts[-1][0]):
        try:
            key = _key(engine, count, len(parts))
            parts.append(_store().blocking_key_value_get_bytes(key, int(1000 * _POLL)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            if has_left(0):
                return _CLOSE, ()
            if failure is not None and time.monotonic() - begun > _GRACE:
                raise failure from None
    name, arguments = _Unpickler(io.BytesIO(b"".join(part[1:] for part in parts))).load()
    assert name in (*_REPEATED, _CLOSE)
    return name, arguments


class _Unpickler(pickle.Unpickler):
    """Reads calls: plans, grammar states and arrays, and nothing that could run a command."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name.split(".")[0], global_name) in _ALLOWED:
            return super().find_class(module_name, global_name)
        if module_name.startswith("lwm.generate."):
            found = super().find_class(module_name, global_name)
            if isinstance(found, type) and found.__module__ == module_name:
                return found
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is no part of a call")


_ALLOWED = {
    *(("builtins", name) for name in ("range", "set", "frozenset")),
    *(("array", name) for name in ("array", "_array_reconstructor")),  # prompts
    *(("numpy", name) for name in ("_frombuffer", "_reconstruct", "scalar", "ndarray", "dtype")),
}


def _key(*parts: int | str) -> str:
    return "/".join(["lwm", "engines", *map(str, parts)])


def _store() -> Any:
    from jax._src.distributed import global_state  # JAX has no public name for it

    return global_state.client
