"""Keys, hosts, limits, and clients that go away."""

import base64
import contextlib
import functools
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest
from PIL import Image
from pydantic import ValidationError

from lwm.errors import UserError
from lwm.serve.config import ServeConfig
from lwm.serve.run import Server
from lwm.serve.schema import ChatRequest, CompletionRequest, DetokenizeRequest

HELLO = [ASKED := {"role": "user", "content": "Name the colour of the sky."}]
LONG = {"prompt": [9] * 600, "max_tokens": 1000, "ignore_eos": True, "temperature": 1.5}


def until(condition, seconds=20.0):
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def keyed(start, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("of-a-file\n\n  second \n")
    return start(api_key=("sk-1",), api_key_file=file, key_requests=2)


ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/props"),
    ("GET", "/slots"),
    ("GET", "/load"),
    ("GET", "/version"),
    ("GET", "/tokenizer_info"),
    ("GET", "/v1/evaluations"),
    ("GET", "/v1/evaluations/a"),
    ("GET", "/v1/evaluations-prompt/a?row=0"),
    ("GET", "/v1/health"),
    ("GET", "/openapi.json"),
    ("GET", "/none"),
    ("GET", "/v1/streams/0123456789012345678901"),
    ("DELETE", "/v1/streams/0123456789012345678901"),
    ("POST", "/v1/media/preview"),
    ("POST", "/tokenize"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_health_needs_the_key(keyed, method, path):
    for headers in ({}, {"authorization": "Bearer sk-2"}, {"authorization": "sk-1"}):
        answer = keyed.client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert keyed.client.get("/health").status_code == 200


@pytest.mark.parametrize("key", ["sk-1", "of-a-file", "second"])
def test_each_key_opens_in_both_headers(keyed, key):
    for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
        assert keyed.client.get("/v1/models", headers=headers).status_code == 200


def test_what_one_key_has_read_is_not_shared_with_another(keyed):
    body = {"prompt": [9] * 600, "max_tokens": 1}

    def cached(key, **more):
        answer = keyed.client.post("/v1/completions", json=body | more, headers={"x-api-key": key})
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached("sk-1") == 0
    assert cached("sk-1") >= 512
    assert cached("second") == 0
    assert cached("second", cache_salt="ours") == 0
    assert cached("sk-1", cache_salt="ours") >= 512


def test_what_one_key_has_shown_is_not_known_to_another(keyed):
    image = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(image, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    body = {"messages": [{"role": "user", "content": parts}]}
    media, hits = keyed.service.media, []
    for key in ("sk-1", "second", "second"):
        answer = keyed.client.post("/tokenize", json=body, headers={"x-api-key": key})
        assert answer.status_code == 200
        hits.append(media.hits)
    assert [each - hits[0] for each in hits] == [0, 0, 1]


def test_requests_of_a_key_are_bounded(keyed):
    headers = {"x-api-key": "sk-1"}
    with contextlib.ExitStack() as streams:
        for _ in range(2):
            body = LONG | {"stream": True}
            answer = streams.enter_context(
                keyed.client.stream("POST", "/v1/completions", json=body, headers=headers)
            )
            assert answer.status_code == 200
        third = keyed.client.post("/v1/completions", json=LONG, headers=headers)
        assert third.status_code == 429
        assert int(third.headers["retry-after"]) >= 1
        assert third.json()["error"]["type"] == "rate_limit_error"
        other = keyed.client.post(
            "/v1/completions", json=LONG | {"max_tokens": 1}, headers={"x-api-key": "second"}
        )
        assert other.status_code == 200
    until(lambda: not keyed.service.open)


def test_more_tokens_than_the_queue_holds_are_refused(start):
    small, body = start(queue_tokens=7000), LONG | {"stream": True}
    with small.client.stream("POST", "/v1/completions", json=body | {"n": 4}) as first:
        lines = first.iter_lines()
        next(lines)  # all slots are taken
        with small.client.stream("POST", "/v1/completions", json=body):
            refused = small.client.post("/v1/completions", json=LONG | {"n": 4})
            assert refused.status_code == 429
            assert "retry-after" in refused.headers
    until(lambda: not small.service.open)
    assert small.post("/v1/completions", **LONG | {"max_tokens": 1}).status_code == 200
    assert small.post("/v1/completions", **LONG | {"n": 5}).status_code == 400


def test_a_key_of_which_nothing_waits_is_let_in(start):
    shared = start(api_key=("a", "b"), queue_tokens=7000)
    with contextlib.ExitStack() as streams:
        for number in range(9):
            body = LONG | {"stream": True, "seed": number}
            streams.enter_context(
                shared.client.stream(
                    "POST", "/v1/completions", json=body, headers={"x-api-key": "a"}
                )
            )
        until(lambda: shared.service.num_waiting >= 4)
        ask = functools.partial(
            shared.client.post, "/v1/completions", json=LONG | {"max_tokens": 1}
        )
        assert ask(headers={"x-api-key": "a"}).status_code == 429
        other = shared.client.stream(
            "POST", "/v1/completions", json=LONG | {"stream": True}, headers={"x-api-key": "b"}
        )
        assert streams.enter_context(other).status_code == 200
        assert shared.service.num_waiting >= 5
    until(lambda: not shared.service.open)


def test_wrong_ids_without_end_are_refused_at_once(served):
    ids = [-1] * 300_000
    assert served.post("/v1/completions", prompt=ids).status_code == 400
    assert served.post("/detokenize", tokens=ids).status_code == 400
    # An error for each would take gigabytes of a longer list.
    for kind, body in ((CompletionRequest, {"prompt": ids}), (DetokenizeRequest, {"tokens": ids})):
        with pytest.raises(ValidationError) as found:
            kind.model_validate(body)
        assert found.value.error_count() <= 5


def nested(depth):
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [ASKED | {"tool_calls": [0] * 5000}]},
        {"messages": [ASKED | {"tool_calls": [{"a": nested(500)}]}]},
        {"messages": [ASKED], "modalities": [0] * 5000},
        {"messages": [ASKED], "logit_bias": {f"{n}": "a" for n in range(5000)}},
        {"messages": [ASKED], "chat_template_kwargs": {"a": nested(500)}},
        {"messages": [ASKED], "chat_template_kwargs": {"a": [0] * 100_000}},
        {"messages": [ASKED], "chat_template_kwargs": {"a": "a" * (2 << 20)}},
    ],
)
def test_large_and_deep_values_are_refused_at_once(served, body):
    with pytest.raises(ValidationError) as found:
        ChatRequest.model_validate(body)
    assert found.value.error_count() <= 5
    answer = served.post("/v1/chat/completions", **body)
    assert answer.status_code == 400
    assert len(answer.json()["error"]["message"]) < 200


def test_clients_do_not_try_again_what_is_not_supported(served):
    answer = served.post("/v1/chat/completions", messages=[ASKED], tools=[{"type": "function"}])
    assert (answer.status_code, answer.headers["x-should-retry"]) == (501, "false")


def test_answers_that_are_cut_when_the_server_stops_are_errors(start):
    stopping = start(drain_seconds=0.2)
    with stopping.client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        threading.Thread(target=stopping.server.stop).start()
        last = [line for line in lines if line][-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "unavailable_error"
    stopping.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://["}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost"}, 200),
        ({"host": "127.0.0.1:80"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_hosts_and_origins_that_are_not_of_this_server_are_refused(served, headers, status):
    assert served.client.get("/v1/models", headers=headers).status_code == status


def test_pages_of_an_allowed_origin_are_let_in(start):
    origin = "https://pages.example"
    open_to = start(cors_origin=(origin,))
    asked = {"origin": origin, "access-control-request-method": "POST"}
    answer = open_to.client.options("/v1/chat/completions", headers=asked)
    assert answer.headers["access-control-allow-origin"] == origin
    got = open_to.client.get("/v1/models", headers={"origin": origin})
    assert (got.status_code, got.headers["access-control-allow-origin"]) == (200, origin)


def test_large_slow_and_broken_bodies_are_refused(start):
    strict = start(body_bytes=1000, read_seconds=0.3)
    body = {"prompt": "x" * 2000}
    assert strict.post("/v1/completions", **body).status_code == 413

    def parts():
        for _ in range(4):
            yield b"x" * 500

    assert strict.client.post("/v1/completions", content=parts()).status_code == 413
    for broken in (b"{", b"[1]", b"\xff", b'{"prompt": NaN}', b"[" * 900):
        answer = strict.client.post(
            "/v1/completions", content=broken, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
    slow = http.client.HTTPConnection("127.0.0.1", strict.server.port, timeout=10)
    slow.putrequest("POST", "/v1/completions")
    slow.putheader("content-length", "100")
    slow.endheaders(b"{")
    assert slow.getresponse().status == 408
    with socket.create_connection(("127.0.0.1", strict.server.port), timeout=10) as silent:
        silent.sendall(b"POST /v1/comp")
        assert silent.recv(100) == b""  # closed


def test_the_work_for_a_client_that_goes_is_ended(served):
    for stream in (True, False):
        with socket.create_connection(("127.0.0.1", served.server.port)) as client:
            body = json.dumps(LONG | {"stream": stream}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n"
            client.sendall(head.encode() + body)
            until(lambda: served.service.open)
        until(lambda: not served.service.open)
        until(lambda: served.service.model.engine.is_idle)


def test_lone_surrogates_and_odd_letters_break_nothing(served):
    headers = {"content-type": "application/json"}
    for text, status in (
        (r'{"prompt": "a\u0000\ufdd1\ud83d\ude00 b", "max_tokens": 1, "echo": true}', 200),
        (r'{"prompt": "a", "max_tokens": 1, "x\ud800": "\ud800"}', 400),
        (r'{"prompt": "\ud800", "max_tokens": 1}', 400),
        (r'{"prompt": "a", "model": "\u001b[31m\n"}', 404),
    ):
        answer = served.client.post("/v1/completions", content=text.encode(), headers=headers)
        assert answer.status_code == status, text
        assert status == 200 or "\n" not in answer.json()["error"]["message"]


def test_other_methods_and_paths_have_errors_of_the_same_form(served):
    for method, path, status in (
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/health", 405),
        ("GET", "/v1/none", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/../../etc/passwd", 404),
    ):
        answer = served.client.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
    assert served.client.get("/v1/models/tiny-vision").json()["id"] == "tiny-vision"


def test_a_server_without_its_model_says_so(start):
    loading = Server(ServeConfig(port=0))
    try:
        for path in ("/health", "/v1/models"):
            answer = httpx.get(f"http://127.0.0.1:{loading.port}{path}")
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "unavailable_error"
        with pytest.raises(UserError, match=r"cannot be used: .*; give another --port"):
            Server(ServeConfig(port=loading.port))
    finally:
        loading.stop()


def test_metrics_count_what_was_answered_and_refused(start):
    counting = start()

    def values():
        lines = counting.client.get("/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line[0] != "#"]
        return {
            name.replace('model_name="tiny-vision",engine="0"', ""): float(v) for name, v in pairs
        }

    body = {"prompt": [9] * 20, "max_tokens": 4, "ignore_eos": True}
    counting.post("/v1/completions", **body, n=2)
    counting.post("/v1/completions", **body | {"max_tokens": 10**6})
    found = values()
    assert found["vllm:generation_tokens_total{}"] == 8
    assert found["vllm:prompt_tokens_total{}"] == 40
    assert found['vllm:request_success_total{,finished_reason="length"}'] == 2
    assert found['lwm:refusals_total{,status="400"}'] == 1
    assert found["vllm:time_to_first_token_seconds_count{}"] == 2
    assert found["vllm:num_requests_running{}"] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "give a key with --api-key"),
        ({"api_key": ("",)}, "an API key is empty"),
        ({"port": 70000}, "port 70000"),
        ({"slots": 0}, "slots 0"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        ServeConfig(**settings)


def test_answers_that_run_are_finished_when_the_server_stops(start):
    stopping = start()
    body = LONG | {"max_tokens": 150, "stream": True}
    with stopping.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        stopping.server.stop_soon()
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    stopping.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(stopping.root)


@pytest.mark.clients
def test_the_command_serves_until_sigterm(tmp_path):
    command = [
        sys.executable,
        "-c",
        "from lwm.cli import main; main()",
        "serve",
        "tiny-vision",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split(" on ")[1].split()[0]
        body = {"prompt": "The", "max_tokens": 2}
        assert httpx.post(f"{url}/completions", json=body, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
