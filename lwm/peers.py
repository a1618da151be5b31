"""Connections between the processes of a program: they meet, and none waits for one that has ended.

The library that JAX uses for this, in C++, aborts where a process is missing. So they meet here
first: process 0 listens at the address of the coordinator, and JAX's service at another port. From
then on each process sends a line per second.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from lwm.errors import UserError
from lwm.text import printable

_HELLO, _BEAT, _ALL_HERE, _BYE, _END = "lwm ", ".", "go ", "bye", "end "
_EVERY = 1.0
"""Seconds between lines."""
_QUIET = 2.0
"""Seconds that may pass before a wait is put in words."""
_GRACE = 1.0
"""Seconds that a process has, after another one has ended, to give a reason of its own."""


def write(text: str) -> None:
    """Writes a line to stderr, in any thread."""
    with contextlib.suppress(OSError):
        os.write(2, f"lwm: {printable(text)}\n".encode())


class Line:
    """A connection for lines of text."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self._rest = b""

    def send(self, text: str) -> None:
        """Sends a line; where the other end is gone, reading shows it."""
        with contextlib.suppress(OSError):
            self.socket.send(f"{text}\n".encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def read(self) -> list[str] | None:
        """Returns the lines that have come, once there is something to read; None at the end."""
        try:
            data = self.socket.recv(1 << 12)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines] if data else None


class Peers:
    """The other processes, watched in a thread: process 0 watches all, and they watch process 0."""

    def __init__(self, lines: Mapping[int, Line], timeout: float):
        """Starts the thread.

        Args:
            lines: Connections by the numbers of the processes.
            timeout: Seconds after which a process that does not answer has failed.
        """
        self._lines, self._timeout = dict(lines), timeout
        self._heard = dict.fromkeys(lines, time.monotonic())
        self._left: set[int] = set()
        self._named: set[int] = set()
        threading.Thread(target=self._watch, daemon=True).start()

    def has_left(self, number: int) -> bool:
        """Returns whether a process has ended as it should."""
        return number in self._left

    def leave(self) -> None:
        """Lets the others know that this process ends as it should."""
        lines, self._lines = self._lines, {}
        for line in lines.values():
            line.send(_BYE)

    def explain(self) -> None:
        """Ends this process if a failure of its work may come from that of another process."""
        time.sleep(_GRACE + 2 * _EVERY)
        for number, heard in self._heard.items():
            if number in self._lines.keys() - self._left and time.monotonic() - heard > 2 * _EVERY:
                self._fail(f"process {number} does not answer; run the same again to go on")

    def _watch(self) -> None:
        beat = 0.0
        while lines := dict(self._lines):
            ready = _readable([line.socket for line in lines.values()], _EVERY / 2)
            now = time.monotonic()
            for number, line in lines.items():
                if line.socket.fileno() in ready:
                    self._heard[number] = now
                    self._named.discard(number)
                    self._take(number, line.read())
            if now - beat >= _EVERY:
                beat = now
                for line in lines.values():
                    line.send(_BEAT)
            for number in (self._lines.keys() & lines.keys()) - self._left:
                self._require_heard(number, now - self._heard[number])

    def _take(self, number: int, lines: list[str] | None) -> None:
        for line in lines or []:
            if line == _BYE:
                self._left.add(number)
            if line.startswith(_END):
                self._fail(line.removeprefix(_END))
        if lines is None:
            if number not in self._left:
                time.sleep(_GRACE)
            if number not in self._left and self._lines:
                self._fail(f"process {number} has ended; see its messages")
            self._lines.pop(number, None)

    def _require_heard(self, number: int, seconds: float) -> None:
        if seconds > self._timeout:
            self._fail(f"process {number} has not answered for {self._timeout:g} s")
        if seconds > _QUIET + 2 * _EVERY and number not in self._named:
            self._named.add(number)
            write(f"process {number} does not answer; {limit(self._timeout)}")

    def _fail(self, reason: str) -> NoReturn:
        for line in list(self._lines.values()):  # the other thread may remove one
            line.send(f"{_END}{reason}")
        write(f"\x1b[?25h{reason}" if os.isatty(2) else reason)  # a bar may have hidden the cursor
        os._exit(1)


def limit(timeout: float) -> str:
    """Returns in words how long is waited."""
    return f"waiting up to {timeout:g} s (--processes.timeout)"


class Meeting:
    """Process 0: waits for the others at a port."""

    def __init__(self, address: str, count: int, timeout: float):
        """Listens.

        Raises:
            UserError: The port is taken.
        """
        self._address, self._count, self._timeout = address, count, timeout
        self._lines: dict[int, Line] = {}
        self._changed = threading.Condition()
        port = split(address)[1]
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            self._server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
            with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as free:
                self.service: int = free.getsockname()[1]
                """Port for JAX's service."""
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen at port {port} of {address}: {error.strerror}; choose "
                "another port"
            ) from None
        threading.Thread(target=self._accept, daemon=True).start()

    def wait(self) -> Mapping[int, Line]:
        """Returns the connections to all others, once they are there.

        Raises:
            UserError: Some are missing; they are named.
        """
        begun = time.monotonic()
        said = False
        with self._changed:
            while len(self._lines) < self._count - 1:
                left = begun + self._timeout - time.monotonic()
                missing = sorted(set(range(1, self._count)) - set(self._lines))
                names = f"process{'es' * (len(missing) > 1)} {', '.join(map(str, missing))}"
                if left <= 0:
                    reason = f"{names} of {self._count} did not join at {self._address} within "
                    reason += f"{self._timeout:g} s; start all, or give --processes.timeout"
                    for line in self._lines.values():
                        line.send(f"{_END}{reason}")
                    raise UserError(reason)
                if not said and time.monotonic() - begun > _QUIET:
                    said = True
                    write(f"{names} of {self._count} not here yet; {limit(self._timeout)}")
                self._changed.wait(min(left, _QUIET))
            for line in self._lines.values():
                line.send(f"{_ALL_HERE}{self.service}")
            return self._lines

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=self._welcome, args=(Line(connection),), daemon=True).start()

    def _welcome(self, line: Line) -> None:
        line.socket.settimeout(10)
        words = "".join(line.read() or []).removeprefix(_HELLO).split()
        line.socket.settimeout(None)
        if len(words) == 2 and all(map(str.isdecimal, words)):
            self._add(line, *map(int, words))
        else:
            line.socket.close()

    def _add(self, line: Line, index: int, count: int) -> None:
        with self._changed:
            there = self._lines.get(index)
            if count != self._count:
                line.send(f"{_END}process 0 has a count of {self._count}, process {index} {count}")
            elif there is not None and not _is_gone(there.socket):
                line.send(f"{_END}there is another process {index}; give each its own index")
            else:
                self._lines[index] = line
                self._changed.notify()
                return
        line.socket.close()


def meet(address: str, index: int, count: int, timeout: float) -> tuple[Line, str]:
    """Meets process 0 and, through it, all others; returns the connection, and JAX's coordinator.

    Raises:
        UserError: Process 0 cannot be reached, or others are missing.
    """
    host, port = split(address)
    begun, said, reason = time.monotonic(), False, ""
    while (left := begun + timeout - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((host, port), min(left, 10))
        except OSError as error:
            reason = error.strerror or "no answer"
            time.sleep(min(left, _EVERY / 4))
        else:
            line = Line(connection)
            connection.settimeout(None)
            line.send(f"{_HELLO}{index} {count}")
            try:
                if service := _all_are_here(line, begun + timeout):
                    return line, _relay(host, service)
            except BaseException:
                connection.close()
                raise
            connection.close()
            reason = "it has ended"
        if not said and time.monotonic() - begun > _QUIET:
            said = True
            write(
                f"process {index} cannot reach process 0 at {address} ({reason}); {limit(timeout)}"
            )
    raise UserError(
        f"process {index} could not join the others at {address} within {timeout:g} s ({reason}); "
        "check the address, start all, or give --processes.timeout"
    )


def _all_are_here(line: Line, until: float) -> int:
    """Waits until all have joined; returns the port of JAX's service, or 0 if process 0 ends."""
    said, begun = False, time.monotonic()
    while (left := until - time.monotonic()) > 0:
        if _readable([line.socket], min(left, _QUIET)):
            lines = line.read()
            if lines is None:
                return 0
            for each in lines:
                if each.startswith(_END):
                    raise UserError(each.removeprefix(_END))
                if each.startswith(_ALL_HERE):
                    return int(each.removeprefix(_ALL_HERE))
        elif not said and time.monotonic() - begun > _QUIET:
            said = True
            write(f"process 0 waits for others; {limit(until - begun)}")
    raise UserError("the others did not join in time; start all, or give --processes.timeout")


def split(address: str) -> tuple[str, int]:
    """Returns host and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _relay(host: str, port: int) -> str:
    """Passes connections to a port of this machine on to process 0; returns its address.

    Where process 0 ends, JAX aborts before anyone could say why. A program of its own keeps JAX's
    connections open, as this process may wait for them with Python's lock held.
    """
    program = Path(__file__).with_name("relay.py")
    relay = subprocess.Popen(
        [sys.executable, "-I", "-S", program, host, str(port)],
        stdin=subprocess.PIPE,  # it ends with this process
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    _kept.append(relay)
    assert relay.stdout is not None
    return f"127.0.0.1:{int(relay.stdout.readline())}"


_kept: list[subprocess.Popen] = []


def _readable(sockets: Iterable[socket.socket], seconds: float) -> set[int]:
    """Returns the descriptors with something to read; `select` would take none above 1023."""
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(1000 * seconds)}


def _is_gone(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
