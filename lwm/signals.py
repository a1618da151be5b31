"""Signals: requests to stop are answered in words at once, also while a program compiles."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any, NoReturn

_PATIENCE = 1.0
"""Seconds that a process has to end by itself, before it is ended in the middle of its work."""
_Handler = Callable[[int, FrameType | None], Any]


class StopRequest:
    """Request to stop at the next safe point."""

    signal: int = 0
    """Number of the signal; 0 for none."""


class Ended(SystemExit):
    """A signal ends the process, with a status of 128 and its number."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.status = 128 + number


@contextlib.contextmanager
def stop_requests(words: str, *numbers: int) -> Generator[StopRequest]:
    """Turns signals into a request, answered in words at once; Ctrl-C after a request interrupts.

    Where Python cannot be interrupted, as while XLA compiles, this Ctrl-C ends the process. Signals
    arrive in the main thread only; in other threads there is no request.

    Args:
        words: The answer on stderr.
        numbers: The signals.
    """
    request = StopRequest()

    def receive(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and request.signal:
            raise KeyboardInterrupt
        request.signal = number

    with _handled(receive, *numbers), answered(words, *numbers):
        yield request


@contextlib.contextmanager
def ending() -> Generator[None]:
    """Ends the process at SIGTERM and SIGHUP with their status, 143 and 129, after a clean-up."""
    with _handled(_end, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def answered(words: str, *numbers: int) -> Generator[None]:
    """Writes words to stderr at the first of some signals; the second Ctrl-C ends the process.

    A thread does it, as Python handles no signal before the call that it is in returns. What is to
    end (see `ending`, and the second Ctrl-C) has a moment for its clean-up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended, seen, process = threading.Event(), [0], os.getpid()

    def answer(number: int) -> None:
        is_last = signal.getsignal(number) is _end
        if number in numbers and not is_last:
            seen[0] += 1
            if seen[0] == 1:
                _write(f"\n{words}\n" if os.isatty(2) else f"{words}\n")  # after the ^C there
            is_last = number == signal.SIGINT and seen[0] > 1
        if is_last and not ended.wait(_PATIENCE):
            _write("\x1b[?25h" if os.isatty(2) else "")  # a bar may have hidden the cursor
            os._exit(128 + number)

    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(read, answer), daemon=True)
    listener.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        if os.getpid() == process:  # one that is forked shares the pipe, and has no thread
            os.write(write, b"\0")
            listener.join()
        os.close(write)
        os.close(read)


def _listen(read: int, answer: Callable[[int], None]) -> None:
    while number := os.read(read, 1)[0]:
        answer(number)


@contextlib.contextmanager
def _handled(handler: _Handler, *numbers: int) -> Generator[None]:
    """Handles signals in the main thread; one that the process was started to ignore stays so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, each in before.items():
            signal.signal(number, each)


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise Ended(number)


def end_now(status: int) -> NoReturn:
    """Ends the process as Python does, but waits for no thread: XLA may still compile in one."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(status)


def _write(text: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be closed
        os.write(2, text.encode())


def _forget() -> None:
    """Keeps the signals of a forked process from its parent."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
