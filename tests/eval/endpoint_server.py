"""A server with OpenAI's API for tests: a program answers, in bytes for tokens, and may fail."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEMPLATE_TOKENS = 20
"""Tokens of the server's chat template, which is another one than ours."""
FAULTS = ("500", "429", "closed", "truncated", "late", "html")


class FakeServer:
    """Records what it is asked, and answers by a program that reads the prompt."""

    def __init__(self, answer: Callable[[str], str]):
        """Serves one model, and never fails."""
        self.answer = answer
        self.models: list[dict[str, Any]] = [{"id": "oracle"}]
        self.fault: Callable[[int], str | None] = lambda number: None
        """The fault of the request of this number, counted from 0."""
        self.key: str | None = None
        self.cut: int | None = None
        """Tokens that the server reads of a prompt at most."""
        self.refusal: Callable[[dict[str, Any]], str | None] = lambda values: None
        """Why the server refuses a request for good, if it does."""
        self.usage = True
        self.together: threading.Barrier | None = None
        self.released = threading.Event()
        """Ends the fault `never`."""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Paths and requests that were answered."""
        self.in_flight = self.peak = 0
        self.numbers = itertools.count()
        self.lock = threading.Lock()
        self.url = ""

    def respond(self, path: str, values: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON of an answer."""
        is_chat = path.endswith("/chat/completions")
        if is_chat:
            prompt = "".join(turn["content"] for turn in values["messages"])
        else:
            prompt = values["prompt"]
        size = len(prompt.encode()) + TEMPLATE_TOKENS * is_chat
        text = self.answer(prompt)
        choice = {"message": {"content": text}} if is_chat else {"text": text}
        read = size if self.cut is None else min(size, self.cut)
        usage = {"prompt_tokens": read, "completion_tokens": len(text)}
        with self.lock:
            self.asked.append((path, values))
        return {"choices": [choice]} | ({"usage": usage} if self.usage else {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeServer

    def do_GET(self) -> None:
        if not self._fails():
            if self.path == "/v1/models":
                self._send(200, {"data": self.fake.models})
            else:
                self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        fake = self.fake
        values = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fake.in_flight += 1
            fake.peak = max(fake.peak, fake.in_flight)
        try:
            if fake.together is not None:
                fake.together.wait(timeout=20)
            if self._fails():
                return
            if reason := fake.refusal(values):
                self._send(400, {"error": {"message": reason, "code": 400}})
                return
            found = fake.respond(self.path, values)
        finally:
            with fake.lock:
                fake.in_flight -= 1
        self._send(200, found)

    def _fails(self) -> bool:
        """Fails in one of several ways, if it is to."""
        fault = self.fake.fault(next(self.fake.numbers))
        if self.fake.key is not None:
            given = self.headers.get("Authorization")
            if given != f"Bearer {self.fake.key}":
                self._send(401, {"error": {"message": f"Incorrect API key: {given}"}})
                return True
        if fault == "500":
            self._send(500, {"error": {"message": "out of memory"}})
        elif fault == "429":
            self._send(429, {"message": "too many"}, {"Retry-After": "0"})
        elif fault == "closed":
            self.close_connection = True
        elif fault == "truncated":
            self._write(200, b'{"choices": [{"mess', {})
        elif fault == "late":
            time.sleep(0.4)
            self.close_connection = True
        elif fault == "never":
            self.fake.released.wait(60)
            self.close_connection = True
        elif fault == "html":
            self._write(502, b"<html>Bad\nGateway</html>", {})
        return fault is not None

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._write(status, json.dumps(value).encode(), headers or {})

    def _write(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores connections that clients closed."""


@contextlib.contextmanager
def serving(answer: Callable[[str], str]) -> Iterator[FakeServer]:
    """Serves on a free port of this machine."""
    fake = FakeServer(answer)
    server = _Quiet(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
