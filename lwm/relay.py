"""Passes connections to a port of this machine on to another address; a program of its own.

python relay.py HOST PORT

Prints the port. Ends with its standard input, and not by signals, which reach the processes of a
program together. Where the other end closes, connections here stay open.
"""

import contextlib
import os
import signal
import socket
import sys
import threading


def main(host: str, port: str) -> None:
    """Passes on until the standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(server, (host, int(port))), daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def _accept(server: socket.socket, address: tuple[str, int]) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_join, args=(connection, address), daemon=True).start()


def _join(connection: socket.socket, address: tuple[str, int]) -> None:
    try:
        there = socket.create_connection(address, 10)
    except OSError:
        connection.close()  # it will try again
        return
    there.settimeout(None)
    threading.Thread(target=_pump, args=(there, connection), daemon=True).start()
    _pump(connection, there)
    with contextlib.suppress(OSError):
        there.shutdown(socket.SHUT_WR)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
