"""Chats over HTTP: whole and streamed answers, images in them, and fields that change them."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

import lwm
from lwm.media.text import read_text

HELLO = [{"role": "user", "content": "Name the colour of the sky."}]
DRAW = [{"role": "user", "content": "Generate an image of a skull"}]


def chunks(answer):
    """Returns the events of a stream, and checks its form."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    events = answer.text.split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    return [json.loads(each.removeprefix("data: ")) for each in events if each[:1] != ":"]


def text_of(stream):
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in stream if c["choices"])


@pytest.fixture(scope="module")
def whole(served):
    body = {"messages": HELLO, "max_tokens": 12, "seed": 5, "modalities": ["text"]}
    return served.post("/v1/chat/completions", **body).json()


def test_an_answer_has_the_form_of_openai(served, whole):
    assert set(whole) >= {"id", "object", "created", "model", "choices", "usage"}
    assert whole["id"].startswith("chatcmpl-")
    assert (whole["object"], whole["model"]) == ("chat.completion", "tiny-vision")
    assert whole["system_fingerprint"] == served.service.fingerprint
    (choice,) = whole["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    used = whole["usage"]
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]


def test_a_stream_says_what_a_whole_answer_says(served, whole):
    body = {"messages": HELLO, "max_tokens": 12, "seed": 5, "modalities": ["text"]}
    answer = served.post("/v1/chat/completions", **body, stream=True)
    stream = chunks(answer)
    assert {c["object"] for c in stream} == {"chat.completion.chunk"}
    assert len({(c["id"], c["created"], c["model"]) for c in stream}) == 1
    assert stream[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(stream) == whole["choices"][0]["message"]["content"]
    assert stream[-1]["choices"][0]["delta"] == {}
    assert stream[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert all(c["choices"][0]["finish_reason"] is None for c in stream[:-1])


def test_a_stream_counts_tokens_at_its_end_when_asked(served, whole):
    body = {"messages": HELLO, "max_tokens": 12, "seed": 5, "modalities": ["text"]}
    options = {"include_usage": True}
    stream = chunks(
        served.post("/v1/chat/completions", **body, stream=True, stream_options=options)
    )
    *before, last = stream
    assert last["choices"] == []
    same = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert {k: last["usage"][k] for k in same} == {k: whole["usage"][k] for k in same}
    assert all(c["usage"] is None for c in before)


def test_n_answers_have_the_next_seeds(served):
    body = {"messages": HELLO, "max_tokens": 8, "temperature": 2.0, "modalities": ["text"]}
    three = served.post("/v1/chat/completions", **body, n=3, seed=7).json()
    alone = served.post("/v1/chat/completions", **body, seed=9).json()
    assert [c["index"] for c in three["choices"]] == [0, 1, 2]
    assert three["choices"][2]["message"] == alone["choices"][0]["message"]


def test_log_probabilities_are_given_for_each_token(served):
    body = {"messages": HELLO, "max_tokens": 6, "temperature": 0, "modalities": ["text"]}
    made = served.post("/v1/chat/completions", **body, logprobs=True, top_logprobs=3).json()
    content = made["choices"][0]["logprobs"]["content"]
    assert len(content) == made["usage"]["completion_tokens"]
    for entry in content:
        assert bytes(entry["bytes"]).decode(errors="replace") == entry["token"]
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert entry["logprob"] == values[0]  # greedy
    streamed = chunks(
        served.post("/v1/chat/completions", **body, logprobs=True, top_logprobs=3, stream=True)
    )
    parts = [c["choices"][0]["logprobs"] for c in streamed]
    assert [e for part in parts if part for e in part["content"]] == content


def image_of(entry):
    head, _, data = entry["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def note_of(entry):
    """Returns the text in the file of an image, which is JSON."""
    return json.loads(
        read_text(base64.b64decode(entry["image_url"]["url"].partition(",")[2])) or ""
    )


def test_an_image_in_an_answer_comes_beside_its_text(served):
    body = {"messages": DRAW, "max_tokens": 100, "temperature": 0, "seed": 3}
    made = served.post("/v1/chat/completions", **body).json()
    message = made["choices"][0]["message"]
    assert isinstance(message["content"], str)
    (image,) = message["images"]
    pixels = image_of(image)
    assert pixels.shape == (64, 64, 3)
    assert pixels.std() > 10
    software = f"lwm {lwm.__version__}"
    assert note_of(image) == {"seed": 3, "model": "tiny-vision", "software": software}
    assert {"type": "image", "index": 0} in message["parts"]
    assert made["usage"]["completion_tokens_details"]["image_tokens"] == 65
    stream = chunks(served.post("/v1/chat/completions", **body, stream=True))
    deltas = [c["choices"][0]["delta"] for c in stream]
    (drawn,) = [delta["images"] for delta in deltas if "images" in delta]
    assert drawn == [image]
    assert any("progress" in c for c in stream)


def test_images_and_clips_of_an_answer_are_read_again(served, video):
    clip = f"data:video/mp4;base64,{base64.b64encode(video).decode()}"
    part = {"type": "video_url", "video_url": {"url": clip}, "num_frames": 2, "index": 0}
    made = {"role": "assistant", "content": "Here", "parts": []}

    def tokens(**more):
        asked = [*HELLO, made | more, *HELLO]
        return served.post("/tokenize", messages=asked, count_only=True).json()["count"]

    assert tokens(videos=[part]) >= tokens() + 2 * 65
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}, "index": 0}
    assert tokens(images=[image], videos=[part]) > tokens(videos=[part])


def test_an_image_in_a_question_is_read_once(served):
    picture = io.BytesIO()
    Image.new("RGB", (80, 60), "red").save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is this?"},
    ]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 8, "temperature": 0}
    first = served.post("/v1/chat/completions", **body).json()
    assert first["usage"]["prompt_tokens_details"]["image_tokens"] > 64
    again = served.post("/v1/chat/completions", **body).json()
    assert again["choices"] == first["choices"]
    counted = served.post("/tokenize", messages=body["messages"]).json()
    assert counted["count"] == len(counted["tokens"]) == first["usage"]["prompt_tokens"]
    shown = first["usage"]["prompt_tokens_details"]["image_tokens"]
    assert counted["image_tokens"] == shown
    only = served.post("/tokenize", messages=body["messages"], count_only=True, with_pieces=True)
    assert only.json() == counted | {"tokens": []}
    only = served.post("/tokenize", prompt="a red square", count_only=True).json()
    assert (only["tokens"], only["image_tokens"]) == ([], 0)
    assert only["count"] == served.post("/tokenize", prompt="a red square").json()["count"] > 0


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": "Hello"}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, None),
        ({"temperature": "0.5"}, 400, "temperature"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": -0.1}, 400, "top_p"),
        ({"logit_bias": {"9" * 5000: 1}}, 400, "logit_bias"),
        ({"n": 0}, 400, "n"),
        ({"n": 9}, 400, "n"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"top_logprobs": 21}, 400, "top_logprobs"),
        ({"stop": ["a"] * 17}, 400, "stop"),
        ({"model": "gpt-5"}, 404, "model"),
        ({"tools": [{"type": "function"}]}, 501, "tools"),
        ({"response_format": {"type": "json_object"}}, 501, "response_format"),
        ({"modalities": ["audio"]}, 501, "modalities"),
        ({"add_generation_prompt": False}, 501, "add_generation_prompt"),
        ({"continue_final_message": True}, 400, "messages.0"),
        ({"continue_final_message": True, "add_generation_prompt": False}, 400, "messages.0"),
        ({"max_tokens": 10**6}, 400, None),
    ],
)
def test_a_wrong_field_is_named(served, fields, status, param):
    answer = served.post("/v1/chat/completions", **{"messages": HELLO} | fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param


def test_a_prompt_beyond_the_context_is_counted(served):
    long = [{"role": "user", "content": "word " * 3000}]
    error = served.post("/v1/chat/completions", messages=long, stream=True).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["n_prompt_tokens"] > error["n_ctx"] == 2048


def test_unknown_fields_change_nothing(served, whole):
    body = {"messages": HELLO, "max_tokens": 12, "seed": 5, "modalities": ["text"]}
    more = {"user": "u", "some_new_field": {"a": [1]}, "service_tier": "auto", "tools": []}
    made = served.post("/v1/chat/completions", **body, **more).json()
    assert made["choices"] == whole["choices"]


def test_an_answer_is_continued_from_its_first_half(served):
    # Else the model begins an image, which text alone has not.
    no_image = {"logit_bias": {"29": -100}}
    same = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, **no_image}
    whole = served.post("/v1/chat/completions", messages=HELLO, max_tokens=8, **same).json()
    ids = whole["choices"][0]["token_ids"]
    half = served.post("/detokenize", tokens=ids[:4]).json()["content"]
    begun = served.post("/tokenize", content=half).json()["tokens"]
    assert begun == ids[:4]

    def asked(content):
        said = [*HELLO, {"role": "assistant", "content": content}]
        return {"messages": said, "continue_final_message": True}

    prompt = served.post("/tokenize", messages=HELLO).json()["tokens"]
    tokens = served.post("/tokenize", **asked(half)).json()["tokens"]
    assert tokens == [*prompt, *begun]
    written = served.post("/apply-template", messages=HELLO).json()["prompt"]
    assert served.post("/apply-template", **asked(half)).json()["prompt"].startswith(written)
    more = {"add_generation_prompt": False, "max_tokens": 4}
    made = served.post("/v1/chat/completions", **asked(half), **same, **more).json()
    assert made["usage"]["prompt_tokens"] == len(tokens)
    assert made["choices"][0]["token_ids"] == ids[4:]
    text = half + made["choices"][0]["message"]["content"]
    assert text.lstrip(" ") == whole["choices"][0]["message"]["content"]
    parts = [{"type": "text", "text": half[:2]}, {"type": "text", "text": half[2:]}]
    assert served.post("/tokenize", **asked(parts)).json()["tokens"] == tokens


SAID = {"role": "assistant", "content": "It is"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
VIDEO = {"type": "video_url", "video_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    "messages",
    [
        HELLO,
        [SAID],
        [*HELLO, SAID, SAID],
        [*HELLO, {"role": "assistant", "content": [IMAGE]}],
        [*HELLO, {"role": "assistant"}],
        [*HELLO, SAID | {"images": [IMAGE]}],
        [*HELLO, SAID | {"videos": [VIDEO]}],
        [*HELLO, SAID | {"tool_calls": [{}]}],
    ],
)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/tokenize", "/apply-template"])
def test_only_a_text_of_the_assistant_is_continued(served, route, messages):
    answer = served.post(route, messages=messages, continue_final_message=True)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]["message"]


def test_an_answer_either_begins_or_is_continued(served):
    both = {"continue_final_message": True, "add_generation_prompt": True}
    answer = served.post("/v1/chat/completions", messages=[*HELLO, SAID], **both)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "continue_final_message")
