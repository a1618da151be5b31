"""Fetches images and videos from public hosts, and never from the server's own network.

A host's name is resolved once, every address of it is checked, and the connection goes to a
checked address, so that a name cannot change between the check and its use.
"""

import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lwm.files import reason_of

Resolve = Callable[[str], Sequence[str]]
"""Returns the addresses of a host, as texts."""
Connect = Callable[[str, int, float], socket.socket]
"""Connects to an address and port within so many seconds."""

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>(?:[/?][^#]*)?)(?:#.*)?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label that makes a host an IPv4 address, in any of its odd spellings."""
_PORTS = {"http": 80, "https": 443}
_LONGEST = 8192
_REDIRECTS = 3
_ADDRESSES = 4
"""Addresses of a host that are tried at most."""
_BLOCK = 1 << 16
_FRAMING = 1 << 20
"""Bytes of headers and of chunks' lengths that an answer may have beside its body."""
_HEADERS = {
    "Accept": "image/*, video/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "lwm",
}

_NOT_PUBLIC = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # of providers, shared by customers
            "127.0.0.0/8",
            "168.63.129.16/32",  # the host of Azure's machines
            "169.254.0.0/16",  # link-local, and the metadata of clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All public addresses of IPv6 lie here; so none that holds an address of IPv4 for NAT64 does."""
_NOT_PUBLIC_6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # Teredo, ORCHID, benchmarks
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which holds an address of IPv4
            "3fff::/20",  # documentation
        ),
    )
)


class FetchError(Exception):
    """A file that is not fetched, with the HTTP status of the answer to the client."""

    def __init__(self, message: str, status: int):
        """Keeps the status: 400, 403 not allowed, 413 too large, 422 failed at the other end."""
        super().__init__(message)
        self.status = status


class _Place(NamedTuple):
    """The parts of an address that a request needs."""

    scheme: str
    host: str
    """In lower case; of IPv6 without brackets."""
    port: int
    target: str

    @property
    def is_usual(self) -> bool:
        return self.port == _PORTS[self.scheme]


def fetch(
    url: str,
    *,
    allow: Sequence[str],
    max_bytes: int,
    seconds: float,
    resolve: Resolve | None = None,
    connect: Connect | None = None,
    context: ssl.SSLContext | None = None,
) -> bytes:
    """Fetches a file over HTTP or HTTPS from an allowed, public host.

    Proxies and credentials of the environment are not used.

    Args:
        url: The address.
        allow: Hosts, such as `example.org` for ports 80 and 443, `example.org:8000` for another
            port, or `*` for any public host.
        max_bytes: Bytes of the file at most.
        seconds: Time for everything, redirects included.
        resolve: Finds the addresses of a host; by default the system does.
        connect: Connects to an address; by default over TCP.
        context: Certificates to trust; by default those of the system.

    Raises:
        FetchError: The address is malformed or not allowed, or the file is too large or was not
            fetched in time.
    """
    end = time.monotonic() + seconds
    for _ in range(_REDIRECTS + 1):
        place = _parse(url)
        _require_allowed(place, allow)
        addresses = _addresses(place.host, resolve or _resolve, end)
        try:
            sock = _connected(addresses, place, end, connect or _connect)
            with sock, _secured(sock, place, end, context) as stream:
                found = _get(stream, place, end, max_bytes)
            if isinstance(found, bytes):
                return found
            url = urllib.parse.urljoin(url, found)
        except TimeoutError:
            raise FetchError(f"{place.host} did not send it in {seconds:g} s", 422) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError(f"{place.host} failed: {reason_of(error)}", 422) from None
    raise FetchError(f"more than {_REDIRECTS} redirects", 422)


def is_public(address: str) -> bool:
    """Returns whether an IP address is one of the public internet.

    Addresses of IPv6 that hold one of IPv4 (mapped, compatible, 6to4, Teredo, NAT64) are not.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return not any(found in each for each in _NOT_PUBLIC)
    return found in _UNICAST and not any(found in each for each in _NOT_PUBLIC_6)


def _parse(url: str) -> _Place:
    """Reads an address strictly: programs that read odd ones disagree on their host."""
    if len(url) > _LONGEST:
        raise FetchError(f"the address is longer than {_LONGEST} characters", 400)
    # `fullmatch` and no whitespace: urllib and browsers drop tabs and newlines.
    found = _URL.fullmatch(url) if re.fullmatch(r"[!-~]*", url) else None
    if found is None:
        raise FetchError(
            "the address is malformed; give http(s)://host/path in ASCII, without a user", 400
        )
    scheme, host = found["scheme"].lower(), found["host"].lower()
    if not _is_host(host):
        raise FetchError(f"{host} is no name of a host; give a name or an IP address", 400)
    port = _PORTS[scheme] if found["port"] is None else int(found["port"])
    target = found["target"]
    return _Place(scheme, host.strip("[]"), port, target if target[:1] == "/" else f"/{target}")


def _is_host(host: str) -> bool:
    if host.startswith("["):
        return ":" in host and _is_address(host[1:-1])
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _is_address(host)
    return len(host) < 254 and all(map(_LABEL.fullmatch, labels))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _require_allowed(place: _Place, allow: Sequence[str]) -> None:
    name = f"[{place.host}]" if ":" in place.host else place.host
    wanted = {f"{name}:{place.port}"}
    if place.is_usual:
        wanted |= {name, place.host, "*"}
    if not wanted.isdisjoint(each.lower() for each in allow):
        return
    shown = name if place.is_usual else f"{name}:{place.port}"
    raise FetchError(
        f"{shown} is not allowed; send the file itself, or start the server with "
        f"--allow-media-host {shown}",
        403,
    )


def _addresses(host: str, resolve: Resolve, end: float) -> Sequence[str]:
    """Returns the addresses of a host, of which all must be public."""
    if _is_address(host):
        found: Sequence[str] = (host,)
    else:
        found = _in_time(lambda: resolve(host), host, end)
    if not found:
        raise FetchError(f"{host} has no address", 422)
    if not all(map(is_public, found)):
        raise FetchError(f"{host} is not on the public internet", 403)
    return found[:_ADDRESSES]


def _in_time(resolve: Callable[[], Sequence[str]], host: str, end: float) -> Sequence[str]:
    """Resolves on a thread of its own, since the system's resolver knows no time limit."""
    found: list[Sequence[str]] = []

    def run() -> None:
        try:
            found.append(resolve())
        except (OSError, ValueError):  # no such name, or one that cannot be
            found.append(())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, end - time.monotonic()))
    if not found:
        raise FetchError(f"{host} was not found in time", 422)
    return found[0]


def _resolve(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _connect(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), seconds)


def _connected(
    addresses: Sequence[str], place: _Place, end: float, connect: Connect
) -> socket.socket:
    """Connects to the first address that answers."""
    error: OSError | None = None
    for number, address in enumerate(addresses):
        share = _left(end) / (len(addresses) - number)
        try:
            return connect(address, place.port, share)
        except OSError as failed:
            error = failed
    raise error or OSError("no address")


def _left(end: float) -> float:
    """Returns the seconds left.

    Raises:
        TimeoutError: There are none.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _secured(
    sock: socket.socket, place: _Place, end: float, context: ssl.SSLContext | None
) -> socket.socket:
    """Returns the connection, with HTTPS encrypted and the host's certificate checked."""
    sock.settimeout(_left(end))
    if place.scheme == "http":
        return sock
    return (context or ssl.create_default_context()).wrap_socket(sock, server_hostname=place.host)


def _get(stream: socket.socket, place: _Place, end: float, max_bytes: int) -> bytes | str:
    """Sends a request; returns the file, or the address of a redirect."""
    host = f"[{place.host}]" if ":" in place.host else place.host
    headers = {"Host": host if place.is_usual else f"{host}:{place.port}", **_HEADERS}
    lines = (f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"GET {place.target} HTTP/1.1\r\n{''.join(lines)}\r\n"
    stream.settimeout(_left(end))
    stream.sendall(request.encode("ascii"))
    limited = _Limited(stream, end, 2 * max_bytes + _FRAMING)
    with http.client.HTTPResponse(limited, method="GET") as response:  # type: ignore[arg-type]
        response.begin()
        location = response.getheader("Location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return location
        if response.status != 200:
            raise FetchError(f"{place.host} answered with status {response.status}", 422)
        if (response.getheader("Content-Encoding") or "identity").lower() != "identity":
            raise FetchError(f"{place.host} sent it compressed, which was not asked for", 422)
        return _body(response, max_bytes)


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """Reads a body, whatever its length is said to be."""
    said = response.length
    parts = io.BytesIO()
    if said is None or said <= max_bytes:
        while block := response.read(min(_BLOCK, max_bytes + 1 - parts.tell())):
            parts.write(block)
            if parts.tell() > max_bytes:
                break
    if (said or 0) > max_bytes or parts.tell() > max_bytes:
        raise FetchError(f"the file is larger than {max_bytes:,} bytes", 413)
    if said is not None and parts.tell() < said:
        raise ValueError(f"it sent {parts.tell():,} of {said:,} bytes")
    return parts.getvalue()


class _Limited(io.RawIOBase):
    """A connection that ends at a time, and after a number of bytes that are read.

    A time-out of the socket alone would begin anew with each byte.
    """

    def __init__(self, stream: socket.socket, end: float, most: int):
        self._stream, self._end, self._most = stream, end, most

    def makefile(self, mode: str) -> io.BufferedReader:
        """Returns the connection as `http.client` reads it."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Reads what has come, or waits for it."""
        self._stream.settimeout(_left(self._end))
        count = self._stream.recv_into(buffer)
        self._most -= count
        if self._most < 0:
            raise FetchError("the answer is larger than its file may be", 413)
        return count
