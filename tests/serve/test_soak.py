"""Many clients of every kind, good and bad: no answer is wrong, and nothing is left behind."""

import base64
import contextlib
import gc
import io
import json
import os
import random
import resource
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

CLIENTS = 6
WARM = 2000
"""Requests after which memory may grow no more."""
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = {"prompt": "a red square", "max_tokens": 40, "ignore_eos": True, "stream": True}


def picture(colour):
    Image.new("RGB", (48, 48), colour).save(buffer := io.BytesIO(), "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


PICTURES = [picture(colour) for colour in ("red", "lime", "blue")]


def about(url, **more):
    """Returns a question about an image."""
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is in the picture?"},
    ]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 6, **more}


GOOD = [
    *((CHAT, about(url, seed=seed)) for seed, url in enumerate(PICTURES)),
    (CHAT, about(PICTURES[0], seed=5, n=2, logprobs=True, top_logprobs=3)),
    (TEXT, {"prompt": "a red square", "max_tokens": 6, "temperature": 0.7, "seed": 1}),
    (TEXT, {"prompt": ["a blue", "a circle"], "max_tokens": 5, "n": 2, "seed": 2, "logprobs": 2}),
    (TEXT, {"prompt": [7, 8, 9], "max_tokens": 0, "echo": True, "logprobs": 1}),
    (TEXT, {"prompt": "the " * 175, "max_tokens": 4, "temperature": 0, "stop": ["e"]}),
]
BAD = [
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"{}", b"[" * 5000, b'{"a":' * 5000),
    *(b'{"messages": 1}', b'{"prompt": {}}', b'{"prompt": "a", "max_tokens": -1}', bytes(1000)),
    *(b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "max_tokens": 1e400}'),
    *(b'{"prompt": [99999999]}', b'{"prompt": "\\ud800", "max_tokens": "x"}'),
    json.dumps({"prompt": "a " * 4000, "max_tokens": 1}).encode(),
    json.dumps({"prompt": "a", "max_tokens": 1, "n": 10**6}).encode(),
    json.dumps(about("data:image/png;base64,AAAA")).encode(),
    json.dumps(about(PICTURES[0][:60])).encode(),
    json.dumps(about("http://127.0.0.1:1/a.png")).encode(),
    json.dumps(about("file:///etc/passwd")).encode(),
]
HEADS = [
    *(b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 50),
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000,
]


def essence(answer):
    """Returns what an answer says, without its name and time."""
    return answer["choices"], {name: answer["usage"][name] for name in ("completion_tokens",)}


class Visitor:
    """Sends random requests, the same for the same seed."""

    def __init__(self, running, known, seed):
        self.random, self.known, self.port = random.Random(seed), known, running.server.port
        self.client = httpx.Client(base_url=running.root, timeout=120)
        self.done = Counter()

    def visit(self):
        kinds = {
            self.whole: 4,
            self.stream: 2,
            self.leave_stream: 3,
            self.leave: 5,
            self.bad_body: 5,
            self.bad_bytes: 3,
            self.slow_reader: 1,
            self.look_around: 2,
        }
        kind = self.random.choices(list(kinds), weights=list(kinds.values()))[0]
        self.done[kind.__name__] += kind() is not False

    def whole(self):
        number = self.random.randrange(len(GOOD))
        path, body = GOOD[number]
        answer = self.client.post(path, json=body)
        if answer.status_code == 429:
            return False
        assert answer.status_code == 200, answer.text
        assert essence(answer.json()) == self.known[number]
        return True

    def stream(self):
        number = self.random.randrange(3)
        path, body = GOOD[number]
        with self.client.stream("POST", path, json=body | {"stream": True}) as answer:
            if answer.status_code == 429:
                return False
            lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        assert lines.pop() == "[DONE]"
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
        text = "".join(delta.get("content") or "" for delta in deltas)
        assert text == self.known[number][0][0]["message"]["content"]
        return True

    def leave_stream(self):
        """Reads a few events of a long answer."""
        left = self.random.randint(0, 6)
        with self.client.stream("POST", TEXT, json=LONG) as answer:
            for _ in answer.iter_lines():
                if (left := left - 1) < 0:
                    break

    def leave(self):
        """Goes after a part of the request, or while its answer is written."""
        path, body = self.random.choice([*GOOD, (TEXT, LONG | {"stream": False})])
        sent = self._request(path, json.dumps(body).encode())
        if self.random.random() < 0.3:
            sent = sent[: self.random.randrange(1, len(sent))]
        with self._connected() as sock:
            sock.sendall(sent)
            time.sleep(self.random.choice([0, 0, 0.01, 0.05, 0.2]))
            if self.random.random() < 0.5:  # with a reset in place of an end
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def bad_body(self):
        path = self.random.choice([CHAT, TEXT, "/tokenize", "/apply-template"])
        answer = self.client.post(path, content=self.random.choice(BAD))
        valid = path == "/tokenize" or path == "/apply-template"
        assert 400 <= answer.status_code < 500 or (valid and answer.status_code == 200), answer.text
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}

    def bad_bytes(self):
        """Sends what is no HTTP, or breaks it off."""
        with self._connected() as sock, contextlib.suppress(OSError):
            sock.sendall(self.random.choice(HEADS))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass

    def slow_reader(self):
        """Reads a long answer in small parts, and may stop reading for longer than it may."""
        body = LONG | {"logprobs": 5}
        with self._connected(buffer=4096) as sock, contextlib.suppress(OSError):
            sock.sendall(self._request(TEXT, json.dumps(body).encode()))
            for _ in range(self.random.randint(1, 5)):
                sock.recv(200)
                time.sleep(0.02)
            if self.random.random() < 0.5:
                time.sleep(0.7)
                while sock.recv(1 << 16):
                    pass

    def look_around(self):
        routes = {"/health": 200, "/metrics": 200, "/slots": 200, "/load": 200, "/none": 404}
        for path, status in routes.items():
            assert self.client.get(path).status_code == status

    def _request(self, path, body):
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def _connected(self, buffer=None):
        sock = socket.socket()
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(60)
        sock.connect(("127.0.0.1", self.port))
        return sock


def memory():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def rest(running):
    """Waits until no request is left, and checks the pages and slots of the engine."""
    service, engine = running.service, running.service.model.engine
    state, deadline = running.server._uvicorn.server_state, time.monotonic() + 60
    quiet = 0
    while quiet < 10:  # what a client sent before it left may still arrive
        assert time.monotonic() < deadline, "a request is never ended"
        is_busy = service.open or state.tasks or not engine.is_idle
        quiet = 0 if is_busy else quiet + 1
        time.sleep(0.02)
    engine.run(engine._runner.check)
    assert not service.waiting
    assert running.client.get("/load").json() == {"server_load": 0, "waiting": 0}
    assert not any(slot["is_processing"] for slot in running.client.get("/slots").json())


SIZES = [
    pytest.param(300, marks=pytest.mark.clients),
    pytest.param(10_000, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("count", SIZES)
def test_after_many_clients_nothing_is_left(start, count):
    running = start(write_seconds=0.5, read_seconds=2.0)
    known = [essence(running.post(path, **body).json()) for path, body in GOOD]
    seen = running.service.media.frames_encoded
    rest(running)
    visitors = [Visitor(running, known, seed) for seed in range(CLIENTS)]
    open_files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    used, rounds = [], -(-count // 500)

    def visit(visitor):
        for _ in range(count // rounds // CLIENTS):
            visitor.visit()

    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in range(rounds):
            list(pool.map(visit, visitors))
            rest(running)
            used.append(memory())
    done = sum((visitor.done for visitor in visitors), Counter())
    assert min(done.values()) > count // 60, done
    for visitor in visitors:
        visitor.client.close()
    # Each picture was encoded once, and a damaged one not at all.
    assert running.service.media.frames_encoded == seen
    again = [essence(running.post(path, **body).json()) for path, body in GOOD]
    assert again == known
    deadline = time.monotonic() + 30  # the server notices closed connections soon
    while len(os.listdir("/proc/self/fd")) > open_files and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= open_files
    assert threading.active_count() <= threads + 12  # of the server's own pools
    if count > WARM:
        warm = used[WARM * rounds // count]
        assert used[-1] - warm <= max(0.05 * warm, 30e6), used


@pytest.mark.parametrize(("stream", "tokens"), [(True, 1900), (False, 60)])
def test_a_client_that_reads_nothing_loses_its_answer(start, stream, tokens):
    running = start(write_seconds=0.3)
    # Otherwise the system itself takes megabytes.
    running.server._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = LONG | {"max_tokens": tokens, "logprobs": 20, "n": 2, "stream": stream}
    visitor = Visitor(running, (), 0)
    with visitor._connected(buffer=4096) as sock:
        sock.sendall(visitor._request(TEXT, json.dumps(body).encode()))
        while not running.service.open:
            time.sleep(0.01)
        (answers,) = running.service.open
        rest(running)
        written = [len(answer.ids) for answer in answers.answers]
        assert not stream or max(written) < tokens
        state, deadline = running.server._uvicorn.server_state, time.monotonic() + 10
        while time.monotonic() < deadline:
            if sock.getsockname() not in {each.client for each in list(state.connections)}:
                break
            time.sleep(0.05)
        else:
            pytest.fail("the connection is kept")
    visitor.client.close()
