"""Kept streams: a client that comes back reads what it would have read."""

import contextlib
import itertools
import json
import math
import re
import time

import httpx
import pytest

from lwm.errors import UserError
from lwm.serve import streams
from lwm.serve.config import MediaConfig

TEXT, CHAT, IMAGES = "/v1/completions", "/v1/chat/completions", "/v1/images/generations"
LONG = {"prompt": [9] * 30, "max_tokens": 1500, "ignore_eos": True, "temperature": 1.5}
SHORT = LONG | {"max_tokens": 40, "seed": 3}
_NUMBERS = itertools.count()


def until(condition, seconds=20.0):
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def name():
    """Returns a name that no other stream has."""
    return f"{next(_NUMBERS):022}"


def busy(running):
    return sum(slot["is_processing"] for slot in running.client.get("/slots").json())


def begin(running, stream, *, events=3, path=TEXT, body=LONG, **headers):
    """Starts a stream, and leaves it after some events; returns their bytes."""
    asked = {"json": body | {"stream": True}, "headers": {"x-stream-id": stream} | headers}
    with running.client.stream("POST", path, **asked) as answer:
        assert answer.status_code == 200
        return first(answer, events)


def first(answer, count):
    """Returns so many events of a stream."""
    data = b""
    for part in answer.iter_raw():
        data += part
        if data.count(b"\n\n") >= count:
            return b"".join(data.split(b"\n\n")[i] + b"\n\n" for i in range(count))
    raise AssertionError(data)


def again(running, stream, after=None, **headers):
    """Reads a stream to its end."""
    headers |= {} if after is None else {"last-event-id": str(after)}
    return running.client.get(f"/v1/streams/{stream}", headers=headers)


def numbers(data):
    return [int(each) for each in re.findall(rb"^id: (\d+)$", data, re.MULTILINE)]


def said(data):
    """Returns what a stream says, in however many events, and what its last ones say."""
    lines = [line for line in data.decode().splitlines() if line.startswith("data: ")]
    found = [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]
    choices = [choice for each in found for choice in each.get("choices", ())]
    text = [each.get("text") or each.get("delta", {}).get("content") or "" for each in choices]
    reasons = [each["finish_reason"] for each in choices if each["finish_reason"]]
    return "".join(text), reasons, found[-1].get("b64_json"), lines[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (TEXT, SHORT),
        (CHAT, {"messages": [{"role": "user", "content": "a sky"}], "seed": 4, "max_tokens": 12}),
        (IMAGES, {"prompt": "a red circle", "seed": 2, "partial_images": 2}),
    ],
)
def test_a_client_that_comes_back_reads_what_it_would_have_read(served, path, body):
    stream = name()
    start = begin(served, stream, path=path, body=body, events=1)
    rest = again(served, stream, after=1)
    assert rest.headers["content-type"] == "text/event-stream; charset=utf-8"
    whole = again(served, stream).content
    assert start + rest.content == whole
    assert numbers(whole) == list(range(1, whole.count(b"\n\n") + 1))
    undisturbed = served.client.post(path, json=body | {"stream": True}).content
    assert said(whole) == said(undisturbed)
    assert not numbers(undisturbed)
    until(lambda: not served.service.open)


def test_an_answer_goes_on_without_its_client_until_it_is_ended(served):
    stream = name()
    begin(served, stream)
    time.sleep(0.1)
    assert busy(served) == 1
    assert served.client.delete(f"/v1/streams/{stream}").status_code == 204
    assert busy(served) == 0
    assert not served.service.open
    kept = again(served, stream).content
    assert b"[DONE]" not in kept
    assert numbers(kept)[-1] >= 3
    assert served.client.delete(f"/v1/streams/{stream}").status_code == 204
    until(lambda: served.service.model.engine.is_idle)


def test_two_clients_read_all(served):
    stream = name()
    begin(served, stream, body=LONG | {"max_tokens": 150})
    with contextlib.ExitStack() as stack:
        readers = [
            stack.enter_context(served.client.stream("GET", f"/v1/streams/{stream}"))
            for _ in range(2)
        ]
        first_of = [reader.iter_raw() for reader in readers]
        begun = [next(each) for each in first_of]
        both = [start + b"".join(rest) for start, rest in zip(begun, first_of, strict=True)]
    assert both[0] == both[1] == again(served, stream).content
    assert both[0].endswith(b"data: [DONE]\n\n")


def test_a_stream_that_nobody_reads_ends_after_its_time(start):
    running = start(detached_seconds=0.3)
    stream = name()
    begin(running, stream)
    with running.client.stream("GET", f"/v1/streams/{stream}") as answer:
        parts = answer.iter_raw()  # dropped at the end, which closes the connection
        next(parts)
        time.sleep(0.5)
        assert busy(running) == 1  # it is read
    until(lambda: not running.service.open, 2.0)
    until(lambda: again(running, stream).status_code == 404, 2.0)
    begin(running, stream, body=SHORT)  # its name is free
    assert b"[DONE]" in again(running, stream).content
    until(lambda: again(running, stream).status_code == 404, 2.0)


def test_without_time_a_stream_ends_with_its_client(start):
    running = start(detached_seconds=0.0)
    stream = name()
    begin(running, stream)
    until(lambda: not running.service.open, 2.0)
    assert again(running, stream).status_code == 404
    with pytest.raises(UserError, match=r"detached_seconds -1.0 must be 0 or above"):
        start(detached_seconds=-1.0)
    with pytest.raises(UserError, match=r"drain_seconds inf must be 0 or above, and finite"):
        start(drain_seconds=math.inf)
    with pytest.raises(UserError, match=r"media_seconds inf must be above 0, and finite"):
        MediaConfig(media_seconds=math.inf)
    with pytest.raises(UserError, match=r"slots 17 are more than the 16 answers .* --slots 16"):
        start(slots=17)


@pytest.mark.parametrize("stream", ["short", "a" * 65, "a" * 21 + "/", "ü" * 22, ""])
def test_malformed_names_are_refused(served, stream):
    answer = served.client.post(
        TEXT, json=SHORT | {"stream": True}, headers={"x-stream-id": stream.encode()}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Stream-Id"
    assert not served.service.open


def test_a_name_is_used_once_and_unknown_ones_are_not_found(served):
    stream = name()
    begin(served, stream, body=SHORT, events=1)
    answer = served.client.post(
        TEXT, json=SHORT | {"stream": True}, headers={"x-stream-id": stream}
    )
    assert answer.status_code == 409
    assert answer.json()["error"]["type"] == "invalid_request_error"
    other = name()
    assert again(served, other).status_code == 404
    assert served.client.delete(f"/v1/streams/{other}").status_code == 404
    for after in ("x", "-1", "9999", "1.5"):
        answer = again(served, stream, after=after)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "Last-Event-ID"
    last = numbers(again(served, stream).content)[-1]
    assert again(served, stream, after=last).content == b""


def test_a_refused_request_leaves_no_stream(served):
    stream = name()
    body = {"prompt": [9] * 3000, "stream": True}
    for _ in range(2):
        answer = served.client.post(TEXT, json=body, headers={"x-stream-id": stream})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert again(served, stream).status_code == 404


def test_streams_belong_to_their_key(start):
    running = start(api_key=("one", "two"))
    stream = name()
    begin(running, stream, **{"x-api-key": "one"})
    for key, status in (("two", 404), ("one", 204)):
        headers = {"x-api-key": key}
        if status == 404:
            assert again(running, stream, **headers).status_code == 404
        found = running.client.delete(f"/v1/streams/{stream}", headers=headers)
        assert found.status_code == status
    assert not running.service.open
    assert running.client.get(f"/v1/streams/{stream}").status_code == 401


def test_an_error_is_kept(start, monkeypatch):
    running = start()
    stream = name()
    begin(running, stream)
    running.service.fail(RuntimeError("a fault"))
    last = again(running, stream).content.split(b"\n\n")[-2]
    assert json.loads(last.split(b"data: ")[1])["error"]["type"] == "server_error"
    assert not running.service.open


def test_a_stream_that_is_too_large_goes_on_for_its_readers_alone(start, monkeypatch):
    running = start()
    monkeypatch.setattr(streams, "MOST_BYTES", 1000)
    read, unread, whole = name(), name(), name()
    asked = {"json": SHORT | {"stream": True, "max_tokens": 60}, "headers": {"x-stream-id": read}}
    with running.client.stream("POST", TEXT, **asked) as answer:
        parts = answer.iter_raw()
        data = next(parts)
        until(lambda: again(running, read).status_code == 404)
        data += b"".join(parts)
    assert numbers(data) == list(range(1, data.count(b"\n\n") + 1))
    assert data.endswith(b"data: [DONE]\n\n")
    begin(running, unread)
    until(lambda: not running.service.open)
    assert again(running, unread).status_code == 404
    monkeypatch.setattr(streams, "MOST_BYTES", 1 << 20)
    begin(running, whole, body=SHORT)
    assert again(running, whole).content.endswith(b"data: [DONE]\n\n")
    assert running.service.streams._size == running.service.streams._known[None, whole].size


def test_beyond_the_limits_ended_streams_make_room_and_then_streams_are_ordinary(
    start, monkeypatch
):
    running = start()
    monkeypatch.setattr(streams, "MOST_STREAMS", 2)
    old, late, more = name(), name(), name()
    begin(running, old, body=SHORT)
    assert again(running, old).status_code == 200
    for stream in (late, more):
        begin(running, stream)
    assert again(running, old).status_code == 404
    asked = {"json": SHORT | {"stream": True}, "headers": {"x-stream-id": name()}}
    assert not numbers(running.client.post(TEXT, **asked).content)
    monkeypatch.setattr(streams, "MOST_BYTES_IN_ALL", 0)
    until(lambda: not running.service.open)  # those that run let go
    assert again(running, late).status_code == again(running, more).status_code == 404


def test_a_stream_that_nobody_reads_does_not_hold_up_the_end(start):
    running = start(drain_seconds=20.0)
    begin(running, name())
    before = time.monotonic()
    running.close()
    assert time.monotonic() - before < 10
    assert not running.service.open
    with pytest.raises(httpx.ConnectError):
        httpx.get(running.root)


def test_a_stream_that_is_read_is_drained(start):
    running = start()
    stream = name()
    begin(running, stream, body=LONG | {"max_tokens": 150})
    with running.client.stream("GET", f"/v1/streams/{stream}") as answer:
        parts = answer.iter_raw()
        data = next(parts)
        running.server.stop_soon()
        data += b"".join(parts)
    assert data.endswith(b"data: [DONE]\n\n")
    running.close()
