"""Chat templates as programs: run in a process of their own, within limits.

A template comes with a model from anywhere. Jinja's sandbox keeps it from files and from Python;
that process, which is kept, also bounds its time, memory and output. It starts at the first use.
"""

import atexit
import collections
import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lwm.errors import UserError
from lwm.tokenizer import template_worker as worker

_SECONDS = 3
"""Processor time of a rendering, besides one for each `_SECOND` bytes of what is rendered."""
_SECOND = 10_000_000
_WAIT = 30
"""Seconds after which an answer is no longer waited for."""
_MEMORY = 512 << 20
"""Bytes of a rendering, besides `_COPIES` of what is rendered."""
_COPIES = 32
_TRIES = 2
"""Times that a template may exceed a limit before it is not run again."""
_SMALL = 1 << 16
"""Bytes of what is rendered up to which the template is to blame, and not what it was given."""
_CHUNK = 1 << 16


class Rendered(NamedTuple):
    """The text that a template wrote, and what it did not read."""

    text: str
    unused: Sequence[str]
    """Of the given variables."""
    unread: Sequence[Sequence[str]]
    """Of the keys of each message."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    given: Iterable[str] = (),
) -> Rendered:
    """Renders messages.

    Args:
        template: Jinja source.
        messages: The conversation.
        variables: Other variables.
        given: Names of variables of which the result says whether the template reads them.

    Raises:
        UserError: It is not valid, fails, or takes too much time or memory.
    """
    if _exceeded[template] >= _TRIES:
        raise UserError(f"the chat template has taken too much {_TRIES} times; it is not run again")
    request = {
        "template": template,
        "messages": messages,
        "variables": {"tools": None, "documents": None, **variables},
        "given": list(given),
    }
    try:
        data = pickle.dumps(request)
    except Exception as error:
        raise UserError(f"a variable of the chat template cannot be passed on: {error}") from None
    try:
        reply = _ask(data)
    except _Ended as ended:
        if len(data) - len(template) <= _SMALL:
            _exceeded[template] += 1
        raise UserError(f"the chat template {ended}") from None
    if "invalid" in reply:
        raise UserError(f"the chat template is not valid Jinja: {reply['invalid']}")
    if "failed" in reply:
        raise UserError(f"the chat template cannot render this conversation: {reply['failed']}")
    return Rendered(**reply)


class _Ended(Exception):
    """A process that ended, or was ended, before it answered; the message says why."""


class _Killed(_Ended):
    """A process that was ended from outside, which says nothing of the template."""


class _Process:
    """The process that runs templates."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", worker.__file__, json.dumps(sys.path)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is not for it
            )
        except (OSError, ValueError) as error:
            raise UserError(f"no process for the chat template can be started: {error}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipes = self._process.stdin, self._process.stdout
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)

    def ask(self, request: bytes) -> dict[str, Any]:
        """Returns the reply to a request.

        Raises:
            _Ended: The process does not answer; it has ended.
        """
        size = len(request)
        head = worker.REQUEST.pack(size, _SECONDS + size // _SECOND, _MEMORY + _COPIES * size)
        try:
            return json.loads(self._exchange(head + request))
        except BrokenPipeError:
            self.close(wait=1.0)
            raise self._ended() from None
        except BaseException:  # an answer that is not read would be that to the next request
            self.close()
            raise

    def _exchange(self, request: bytes) -> bytes:
        stdin, stdout = (pipe.fileno() for pipe in self._pipes)
        deadline = time.monotonic() + _WAIT
        left, found, end = memoryview(request), bytearray(), worker.REPLY.size
        while left:
            _await(stdin, select.POLLOUT, deadline)
            left = left[os.write(stdin, left[:_CHUNK]) :]
        while len(found) < end:
            _await(stdout, select.POLLIN, deadline)
            if not (piece := os.read(stdout, 1 << 20)):
                raise BrokenPipeError
            found += piece
            if end == worker.REPLY.size <= len(found):
                end += worker.REPLY.unpack_from(found)[0]
        return bytes(found[worker.REPLY.size :])

    def _ended(self) -> "_Ended":
        code = self._process.returncode
        if code == -signal.SIGXCPU:
            return _Ended(f"takes more than {_SECONDS} seconds of processor time")
        if code == worker.NO_MEMORY:
            return _Ended(f"takes more than {_MEMORY >> 20} MiB of memory")
        from_outside = code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)
        kind = _Killed if from_outside else _Ended
        return kind(f"ended the process that runs it, with status {code}")

    def close(self, *, wait: float = 0.0) -> None:
        """Ends the process, unless it ends by itself within some seconds."""
        for pipe in self._pipes:
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait)
        self._process.kill()  # does nothing once it has ended
        self._process.wait()

    def forget(self) -> None:
        """Closes this process's ends of the pipes; for a fork, whose parent has it."""
        self._process.returncode = 0  # not a child of the fork, which need not wait for it
        for pipe in self._pipes:
            pipe.close()


def _await(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise _Ended(f"has not answered for {_WAIT} seconds")


_exceeded: collections.Counter[str] = collections.Counter()
_lock = threading.Lock()
_process: _Process | None = None


def _ask(request: bytes) -> dict[str, Any]:
    """Asks the process, and starts it if it is not there or has been killed."""
    global _process
    with _lock:
        while True:
            is_new = _process is None
            process = _process = _process or _Process()
            try:
                return process.ask(request)
            except BaseException as error:
                _process = None
                if is_new or not isinstance(error, _Killed):
                    raise


def _stop() -> None:
    global _process
    process, _process = _process, None
    if process is not None:
        process.close()


def _forget() -> None:
    global _process, _lock
    process, _process, _lock = _process, None, threading.Lock()
    if process is not None:
        process.forget()


atexit.register(_stop)
os.register_at_fork(after_in_child=_forget)
