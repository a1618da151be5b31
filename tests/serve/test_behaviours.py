"""Behaviours that llama.cpp's server has tests for, beyond those of the other files."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

ASK = [{"role": "user", "content": "What is shown in this image?"}]
COMPANY = 33


def choice_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def events(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_an_answer_is_the_same_alone_amid_32_others_cold_and_warm(start):
    running = start()
    bodies = [
        {
            "prompt": [5 + number % 3] * (600 if number in (13, 16) else 5 * number + 3),
            "max_tokens": 6 + number % 5,
            "seed": number,
            "temperature": 1.0,
            "ignore_eos": True,
            "return_token_ids": True,
            "logprobs": 0,
            "cache_salt": "cold",
        }
        for number in range(COMPANY)
    ]

    def answer(body):
        found = choice_of(running.client.post("/v1/completions", json=body))
        return found["token_ids"], found["logprobs"]["token_logprobs"]

    with ThreadPoolExecutor(COMPANY) as threads:
        together = list(threads.map(answer, bodies))
    for number in (0, 1, 13, 25, 31):
        warm = bodies[number]
        assert answer(warm) == answer(warm | {"cache_salt": f"alone {number}"}) == together[number]


def test_more_requests_than_slots_are_all_answered(served):
    body = {"messages": ASK, "max_tokens": 3, "n": 2, "modalities": ["text"]}
    with ThreadPoolExecutor(6) as threads:
        made = list(
            threads.map(lambda _: served.post("/v1/chat/completions", **body).json(), range(6))
        )
    assert [len(each["choices"]) for each in made] == [2] * 6
    assert not served.service.open


def test_a_repeated_chat_is_read_from_the_cache(served):
    long = [{"role": "user", "content": "a picture of many different things " * 40}]
    body = {"messages": long, "max_tokens": 2, "temperature": 0}
    first, again = (served.post("/v1/chat/completions", **body).json() for _ in range(2))
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= 512
    assert again["timings"]["cache_n"] == cached
    assert again["timings"]["prompt_n"] == again["usage"]["prompt_tokens"] - cached
    assert again["choices"] == first["choices"]


def test_the_progress_of_a_prompt_is_streamed(served):
    body = {"messages": [{"role": "user", "content": "things " * 300}], "max_tokens": 1}
    asked = {"stream": True, "return_progress": True, "cache_salt": "progress"}
    found = events(served.post("/v1/chat/completions", **body, **asked))
    progress = [each["prompt_progress"] for each in found if "prompt_progress" in each]
    done = [each["processed"] for each in progress]
    assert len(done) >= 2
    assert done == sorted(done)
    assert all(set(each) == {"total", "cache", "processed", "time_ms"} for each in progress)
    assert done[-1] in (progress[-1]["total"], progress[-1]["total"] - 1)


def test_a_stream_beyond_the_context_is_an_error_and_no_stream(served):
    body = {"prompt": [9] * 3000, "stream": True}
    answer = served.post("/v1/completions", **body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["type"] == "exceed_context_size_error"


def test_a_prompt_may_fill_the_context_to_the_last_token(served):
    choice = choice_of(served.post("/v1/completions", prompt=[9] * 2047, max_tokens=1))
    assert choice["finish_reason"] in ("stop", "length")
    assert served.post("/v1/completions", prompt=[9] * 2048, max_tokens=1).status_code == 400


def test_an_answer_without_a_limit_ends_with_the_context(served):
    def messages(count):
        return [{"role": "user", "content": "a " * count}]

    counted = [served.post("/tokenize", messages=messages(n)).json()["count"] for n in (0, 100)]
    count = (2020 - counted[0]) * 100 // (counted[1] - counted[0])
    body = {"messages": messages(count), "temperature": 0, "ignore_eos": True}
    made = served.post("/v1/chat/completions", **body).json()
    assert made["choices"][0]["finish_reason"] == "length"
    assert made["usage"]["total_tokens"] == 2048


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_stream_are_those_of_the_whole(served, stream):
    body = {"prompt": "A red", "max_tokens": 5, "temperature": 0, "logprobs": 3, "ignore_eos": True}
    whole = choice_of(served.post("/v1/completions", **body))["logprobs"]
    if not stream:
        assert all(len(tops) == 3 for tops in whole["top_logprobs"])
        return
    parts = [
        each["choices"][0]["logprobs"]
        for each in events(served.post("/v1/completions", **body, stream=True))
    ]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for part in parts for value in part[key]] == whole[key]


def test_the_end_of_text_is_not_written_on_request(served):
    body = {"prompt": "The", "max_tokens": 30, "temperature": 0}
    assert choice_of(served.post("/v1/completions", **body))["finish_reason"] == "stop"
    longer = choice_of(served.post("/v1/completions", **body, ignore_eos=True))
    assert longer["finish_reason"] == "length"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_stop_strings_that_tokens_divide_are_met(served, size):
    body = {"prompt": "The", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    text = choice_of(served.post("/v1/completions", **body))["text"]
    stop = text[3 : 3 + size]
    found = choice_of(served.post("/v1/completions", **body, stop=stop))
    assert found["text"] == text[: text.find(stop)]
    streamed = events(served.post("/v1/completions", **body, stop=stop, stream=True))
    assert "".join(each["choices"][0]["text"] for each in streamed) == found["text"]


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        {},
        ["text"],
        [{"role": "user", "content": 1}],
        [{"role": "user", "content": [1]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "nothing"}}]}],
        [{"role": "assistant", "content": "An answer."}],
        [{"content": "Without a role."}],
    ],
)
def test_messages_that_are_none_are_refused(served, messages):
    answer = served.post("/v1/chat/completions", messages=messages)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_slots_and_load_show_what_runs(served):
    body = {"prompt": [9] * 30, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with served.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        slots = served.client.get("/slots").json()
        assert [slot["is_processing"] for slot in slots] == [True, False, False, False]
        assert slots[0]["n_prompt_tokens"] == 30
        assert served.client.get("/load").json()["server_load"] == 1


def test_properties_and_models_say_what_the_model_can(served, drawing, monkeypatch):
    props = served.client.get("/props").json()
    assert props["total_slots"] == 4
    assert props["default_generation_settings"]["n_ctx"] == 2048
    assert props["modalities"] == {"vision": True, "video": True, "audio": False}
    assert props["max_n"] == 8
    settings, default = props["image_settings"], drawing.sampling
    assert (settings["resolution"], settings["tokens_per_frame"]) == (64, 64)
    for kind in ("image", "video"):
        wanted = dataclasses.asdict(getattr(default, kind))
        assert settings[kind] == {name: settings[kind][name] for name in wanted}
        assert all(value in (None, settings[kind][name]) for name, value in wanted.items())
    monkeypatch.setattr(served.service, "draws", False)
    assert served.client.get("/props").json()["image_settings"] is None
    monkeypatch.undo()
    (model,) = served.client.get("/v1/models").json()["data"]
    assert model["architecture"]["output_modalities"] == ["text", "image", "video"]
    assert model["meta"]["n_vocab"] == 2050
    assert model["max_model_len"] == 2048
