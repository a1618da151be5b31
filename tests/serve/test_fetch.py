"""Files of other hosts: from allowed, public ones only, within limits of size and time."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from typing import Any

import pytest

from lwm.serve.fetch import FetchError, fetch, is_public

PUBLIC = "93.184.215.14"
HOST = "media.test"
LIMIT = 1 << 16

# A host of a URL, none of which is on the public internet.
LITERALS = [
    *("127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255"),
    *("172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255"),
    *("169.254.169.254", "169.254.0.1", "168.63.129.16", "100.64.0.1", "100.100.100.200"),
    *("100.127.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1"),
    *("239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("[::]", "[::1]", "[::7f00:1]", "[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
    *("[::ffff:0:127.0.0.1]", "[fe80::1]", "[fec0::1]", "[fc00::1]", "[fd00:ec2::254]"),
    *("[ff02::1]", "[100::1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::8.8.8.8]"),
    *("[64:ff9b:1::a00:1]", "[2001::1]", "[2001:0:53aa:64c::1]", "[2001:2::1]", "[2001:10::1]"),
    *("[2001:db8::1]", "[2002:7f00:1::1]", "[2002:a00:1::]", "[3fff::1]", "[5f00::1]"),
    *("[4000::1]", "[::ffff:8.8.8.8]"),
]
# Addresses that programs read in different ways; some of them as 127.0.0.1.
ODD = [
    *("2130706433", "0x7f000001", "0x7f.1", "0x7f.0x0.0x0.0x1", "0177.0.0.1", "017700000001"),
    *("127.1", "127.0.1", "127.0.0.1.", "127.000.000.001", "1.2.3.4.5", "256.1.1.1", "0x", "1"),
    *("media.test.", "media..test", ".media.test", "-media.test", "media-.test", "a" * 64),
    *("media.test%00.evil.test", "media%2etest", "%6dedia.test", "media_.test", "a." * 127 + "a"),
    *("user@media.test", "media.test@127.0.0.1", "user:secret@media.test", "media.test:80@evil"),
    *("mediå.test", "ⓜedia.test", "media。test", "１２７.0.0.1", "ß.test", "media\u00ad.test"),
    *("[127.0.0.1]", "[::1", "::1", "[fe80::1%25lo]", "[::1%lo]", "[]", "", "[::g]", "[v1.a]"),
    *("media.test\\@evil.test", "media.test\t", " media.test", "media\n.test", "media.test\x00"),
    *("media.test:", "media.test:port", "media.test:123456", "media.test:-1", "media.test:8 0"),
]


def never(*arguments):
    raise AssertionError(f"asked for {arguments}")


class Site:
    """Answers HTTP requests on loopback with given bytes, lies included."""

    def __init__(self):
        self.answers = {}
        """Path to bytes, which may be endless."""
        self.requests, self.connects, self.resolved = [], [], []
        self.names = {HOST: [PUBLIC]}
        self.context = None
        self.ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self):
        self.ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self):
        while True:
            try:
                accepted = self._listener.accept()[0]
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=[accepted], daemon=True))
            self._threads[-1].start()

    def _serve(self, accepted):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            accepted.settimeout(10)
            stack.enter_context(accepted)
            if self.context is not None:
                accepted = stack.enter_context(self.context.wrap_socket(accepted, server_side=True))
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += accepted.recv(4096)
            self.requests.append(request.decode())
            for part in self.answers[request.split()[1].decode()]:
                accepted.sendall(part)

    def resolve(self, host):
        self.resolved.append(host)
        return self.names[host]

    def connect(self, address, port, seconds):
        self.connects.append((address, port))
        return socket.create_connection(self._listener.getsockname(), seconds)

    def fetch(self, url, **options):
        given: dict[str, Any] = {"allow": (HOST,), "max_bytes": LIMIT, "seconds": 30.0}
        given |= {"resolve": self.resolve, "connect": self.connect} | options
        return fetch(url, **given)

    def refused(self, url, **options):
        with pytest.raises(FetchError) as caught:
            self.fetch(url, **options)
        return caught.value.status, str(caught.value)


@pytest.fixture
def site():
    found = Site()
    yield found
    found.close()


def answer(body=b"", status="200 OK", **headers):
    headers = {"Content-Length": len(body)} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return [f"HTTP/1.1 {status}\r\n{lines}\r\n".encode(), body]


def redirect(location, status="302 Found"):
    return answer(b"moved", status, Location=location)


def test_a_file_is_fetched_from_the_address_that_was_checked(site, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site.answers["/a/b%20c.png?size=1&d=%2f"] = answer(b"pixels")
    assert site.fetch("HTTP://Media.TEST/a/b%20c.png?size=1&d=%2f#there") == b"pixels"
    assert (site.resolved, site.connects) == ([HOST], [(PUBLIC, 80)])
    first, *headers = site.requests[0].strip().split("\r\n")
    assert first == "GET /a/b%20c.png?size=1&d=%2f HTTP/1.1"
    assert headers == [
        f"Host: {HOST}",
        "Accept: image/*, video/*",
        "Accept-Encoding: identity",
        "Connection: close",
        "User-Agent: lwm",
    ]
    site.answers["/?q"] = answer(b"short")
    assert site.fetch(f"http://{HOST}?q") == b"short"


def test_bodies_of_every_framing_are_read(site):
    chunks = [b"3\r\nabc\r\n", b"2;note=1\r\nde\r\n", b"0\r\nTrailer: 1\r\n\r\n"]
    site.answers = {
        "/said": answer(b"abcde"),
        "/chunked": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *chunks],
        "/closed": [b"HTTP/1.0 200 OK\r\n\r\n", b"abcde"],
        "/informed": [b"HTTP/1.1 100 Continue\r\n\r\n", *answer(b"abcde")],
    }
    for path in ("/said", "/chunked", "/closed", "/informed"):
        assert site.fetch(f"http://{HOST}{path}") == b"abcde"
    site.answers["/full"] = answer(bytes(LIMIT))
    assert site.fetch(f"http://{HOST}/full") == bytes(LIMIT)


def refused(url, *, allow=("*",), resolve=never):
    """Fetches from a place to which no connection may be made; returns status and reason."""
    with pytest.raises(FetchError) as caught:
        fetch(url, allow=allow, max_bytes=1, seconds=9.0, resolve=resolve, connect=never)
    return caught.value.status, str(caught.value)


def test_an_address_that_is_not_public_is_refused_before_a_connection():
    assert len(set(LITERALS)) == len(LITERALS) >= 40
    for host in LITERALS:
        address = host.strip("[]")
        assert not is_public(address), host
        for allow in (("*",), (host,), (address,), ("*", f"{host}:8080")):
            for url in (f"http://{host}/", f"https://{host}", f"http://{host}:80/?x"):
                status, message = refused(url, allow=allow)
                assert (status, "not on the public internet" in message) == (403, True), url


def test_a_name_of_an_address_that_is_not_public_is_refused():
    for host in LITERALS:
        address = host.strip("[]")
        for found in ([address], [PUBLIC, address], [*[PUBLIC] * 9, address]):
            answered = refused(f"http://{HOST}/", resolve=lambda _, found=found: found)
            assert answered == (403, f"{HOST} is not on the public internet"), found


def test_an_odd_spelling_of_a_host_is_refused():
    for host in ODD:
        for allow in (("*",), (host,), (HOST,)):
            assert refused(f"http://{host}/a.png", allow=allow)[0] == 400, host


def test_public_addresses_are_public():
    for address in ("8.8.8.8", PUBLIC, "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111"):
        assert is_public(address)
    for address in ("", "media.test", "1.2.3", "8.8.8.8 ", "::ffff:8.8.8.8%eth0"):
        assert not is_public(address)


def test_what_is_no_address_of_http_is_refused():
    urls = [
        *("", "media.test/a", "//media.test/a", "file:///etc/passwd", "ftp://media.test/a"),
        *("gopher://media.test/", "http:/media.test", "http:media.test", "http:///a"),
        *("http://media.test/a b", "http://media.test/\r\nX: 1", "http://media.test/å"),
        *(" http://media.test/", "http://media.test/\n", "http://media.test\\a"),
        "http://media.test/" + "a" * 9000,
    ]
    for url in urls:
        assert refused(url)[0] == 400, url


def test_only_allowed_hosts_and_ports_are_asked(site):
    site.answers["/"] = answer(b"x")
    site.names |= {"sub.media.test": [PUBLIC]}
    refused = [
        ("http://sub.media.test/", (HOST,), "sub.media.test"),
        ("http://media.test.evil.test/", (HOST,), "media.test.evil.test"),
        (f"http://{HOST}/", (), HOST),
        (f"http://{HOST}:8080/", (HOST, "*"), f"{HOST}:8080"),
        (f"http://{HOST}:443/", (HOST, "*"), f"{HOST}:443"),
        (f"http://{HOST}/", (f"{HOST}:8080",), HOST),
        (f"http://{HOST}:22/", (f"{HOST}:8080",), f"{HOST}:22"),
    ]
    for url, allow, named in refused:
        status, message = site.refused(url, allow=allow)
        assert status == 403
        assert message.endswith(f"start the server with --allow-media-host {named}")
    assert not site.resolved
    assert not site.connects
    for url, allow in [
        ("http://sub.media.test/", ("*",)),
        (f"http://{HOST}:80/", ("Media.Test",)),
        (f"http://{HOST}:8080/", (f"{HOST}:8080",)),
        ("http://[2606:4700::1111]/", ("2606:4700::1111",)),
        ("http://[2606:4700::1111]:8080/", ("[2606:4700::1111]:8080",)),
    ]:
        assert site.fetch(url, allow=allow) == b"x"
    assert [port for _, port in site.connects] == [80, 80, 8080, 80, 8080]
    hosts = [request.split("Host: ")[1].split("\r\n")[0] for request in site.requests]
    assert hosts[2:] == [f"{HOST}:8080", "[2606:4700::1111]", "[2606:4700::1111]:8080"]


def test_a_name_that_changes_its_address_does_not_lead_inside(site):
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    site.answers["/"] = redirect("/again")
    status, message = site.refused(f"http://{HOST}/", resolve=lambda host: next(answers))
    assert (status, message) == (403, f"{HOST} is not on the public internet")
    assert site.connects == [(PUBLIC, 80)], "the address that was checked, and no other"


def test_redirects_are_checked_as_the_first_address(site):
    site.answers |= {f"/{number}": redirect(f"/{number + 1}") for number in range(4)}
    site.answers |= {"/4": answer(b"end"), "/dir/a": redirect("../1", "308 Permanent Redirect")}
    assert site.fetch(f"http://{HOST}/1") == b"end"
    assert len(site.resolved) == 4, "anew for each"
    assert site.refused(f"http://{HOST}/0") == (422, "more than 3 redirects")
    assert site.refused(f"http://{HOST}/dir/a")[0] == 422
    for location, status in [
        ("http://127.0.0.1/", 403),
        ("//[::1]/", 403),
        ("http://169.254.169.254/latest/meta-data", 403),
        (f"http://{HOST}:8080/", 403),
        ("http://2130706433/", 400),
        ("file:///etc/passwd", 400),
        ("http://user@media.test/", 400),
        ("http://[", 422),
    ]:
        site.answers["/"] = redirect(location)
        assert site.refused(f"http://{HOST}/", allow=("*",))[0] == status
    site.answers["/"] = redirect("http://other.test/")
    assert site.refused(f"http://{HOST}/")[0] == 403
    assert set(site.connects) == {(PUBLIC, 80)}
    assert set(site.resolved) == {HOST}


def test_a_file_that_is_too_large_is_refused_whatever_it_says(site):
    block = bytes(1 << 14)

    def endless(start, part):
        yield start
        while not site.ended.is_set():
            yield part

    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    tiny = b"1;" + b"x" * 30_000 + b"\r\na\r\n"
    many = b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 1000 + b"\r\n"
    site.answers = {
        "/unsaid": endless(b"HTTP/1.1 200 OK\r\n\r\n", block),
        "/negative": endless(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", block),
        "/chunks": endless(chunked, b"4000\r\n" + block + b"\r\n"),
        "/large chunk": endless(chunked, b"FFFFFFFFFFFFFF\r\n" + block),
        "/notes": endless(chunked, tiny),
        "/informed": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "/one more": answer(bytes(LIMIT + 1)),
    }
    for path in list(site.answers):
        site.answers[path.replace(" ", "-")] = site.answers[path]
        assert site.refused(f"http://{HOST}{path.replace(' ', '-')}")[0] == 413, path
    site.answers["/said"] = endless(
        f"HTTP/1.1 200 OK\r\nContent-Length: {2**62}\r\n\r\n".encode(), b""
    )
    assert site.refused(f"http://{HOST}/said")[0] == 413
    site.answers |= {"/many": [many], "/line": endless(b"HTTP/1.1 200 OK\r\nX: ", block)}
    for path in ("/many", "/line"):
        assert site.refused(f"http://{HOST}{path}")[0] == 422
    # A server that sends what was said and more is not read further.
    site.answers["/more"] = endless(answer(b"abc")[0] + b"abc", block)
    assert site.fetch(f"http://{HOST}/more") == b"abc"


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_drops_do_not_extend_the_time(site, start):
    def drip():
        yield start
        while not site.ended.wait(0.01):
            yield b"1"

    site.answers["/"] = drip()
    status, message = site.refused(f"http://{HOST}/", seconds=0.3)
    assert (status, message) == (422, f"{HOST} did not send it in 0.3 s")


def test_silence_and_slow_names_end_in_time(site):
    def silent():
        site.ended.wait()
        yield b""

    site.answers["/"] = silent()
    assert site.refused(f"http://{HOST}/", seconds=0.1)[0] == 422
    released = threading.Event()

    def slow(host):
        released.wait(30)
        return [PUBLIC]

    found = site.refused(f"http://{HOST}/", seconds=0.1, resolve=slow)
    assert found == (422, f"{HOST} was not found in time")
    released.set()
    # All redirects share one time.
    site.answers |= {"/0": redirect("/1"), "/1": redirect("/2"), "/2": redirect("/3")}

    def late(host):
        time.sleep(0.2)
        return [PUBLIC]

    assert site.refused(f"http://{HOST}/0", seconds=0.5, resolve=late)[0] == 422
    assert "/2" not in [request.split()[1] for request in site.requests]


def test_failures_of_the_other_host_are_named(site):
    site.answers = {
        "/missing": answer(b"", "404 Not Found"),
        "/failed": answer(b"", "503 Service Unavailable"),
        "/part": answer(b"a", "206 Partial Content"),
        "/nothing": answer(b"", "204 No Content"),
        "/moved": answer(b"", "302 Found"),
        "/packed": answer(b"a", Content_Encoding="gzip"),
        "/short": [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"],
        "/cut": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"],
        "/odd": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab"],
        "/silent": [],
        "/garbage": [b"SSH-2.0-OpenSSH_9.9\r\n"],
    }
    for path in site.answers:
        status, message = site.refused(f"http://{HOST}{path}")
        assert status == 422, path
        assert message.startswith(HOST), path
        assert "\n" not in message
    assert site.refused(f"http://{HOST}/missing")[1] == f"{HOST} answered with status 404"

    def failing(host):
        raise socket.gaierror(-2, "Name or service not known")

    assert site.refused(f"http://{HOST}/", resolve=failing) == (422, f"{HOST} has no address")


def test_the_next_address_is_tried(site):
    site.names[HOST] = ["2606:4700::1111", PUBLIC, "8.8.8.8"]
    site.answers["/"] = answer(b"x")
    tried = []

    def connect(address, port, seconds):
        tried.append(address)
        if ":" in address:
            raise ConnectionRefusedError(111, "Connection refused")
        return site.connect(address, port, seconds)

    assert site.fetch(f"http://{HOST}/", connect=connect) == b"x"
    assert tried == ["2606:4700::1111", PUBLIC]
    site.names[HOST] = ["2606:4700::1111"]
    found = site.refused(f"http://{HOST}/", connect=connect)
    assert found == (422, f"{HOST} failed: Connection refused")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_https_is_for_the_name_and_checks_its_certificate(site, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made += ["-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "2"]
    made += ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    subprocess.run(made, check=True, capture_output=True)
    named = []
    site.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    site.context.load_cert_chain(certificate, key)
    site.context.sni_callback = lambda _, name, __: named.append(name)
    site.answers["/"] = answer(b"secret")
    trusted = ssl.create_default_context(cafile=str(certificate))
    assert site.fetch(f"https://{HOST}/", context=trusted) == b"secret"
    assert (named, site.connects) == ([HOST], [(PUBLIC, 443)])
    site.names["other.test"] = [PUBLIC]
    status, message = site.refused("https://other.test/", allow=("*",), context=trusted)
    assert (status, "certificate" in message) == (422, True)
    status, message = site.refused(f"https://{HOST}/")  # nobody vouches for it
    assert (status, "certificate" in message) == (422, True)
    assert len(site.requests) == 1
