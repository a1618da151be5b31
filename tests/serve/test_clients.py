"""Programs that people use with servers of OpenAI's dialect, each beside a plain request."""

import asyncio
import base64
import collections
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

MODEL = "tiny-vision"
SCRIPTS = Path(__file__).parent
JS = {"openai": "7.59.0", "ai": "7.0.173", "@ai-sdk/openai-compatible": "3.0.92"}
"""Packages of npm and their versions."""


def picture(colour="red"):
    image = Image.new("RGB", (64, 64), "white")
    image.paste(Image.new("RGB", (32, 32), colour), (16, 16))
    image.save(buffer := io.BytesIO(), "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


LOOK = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is in the picture?"},
            {"type": "image_url", "image_url": {"url": picture()}},
        ],
    }
]
DRAW = [{"role": "user", "content": "Generate an image of a skull"}]
ASK = {"model": MODEL, "messages": LOOK, "max_tokens": 12, "seed": 7}
ASK_IMAGE = {"model": MODEL, "messages": DRAW, "max_tokens": 100, "seed": 3, "temperature": 0}


@pytest.fixture(scope="module")
def plain(served):
    """Answers to `ASK` and `ASK_IMAGE` without a client's library."""
    asked = (ASK, ASK_IMAGE | {"modalities": ["text", "image"]})
    text, image = (served.post("/v1/chat/completions", **each).json() for each in asked)
    assert text["choices"][0]["message"]["content"].strip()
    assert image["choices"][0]["message"]["images"]
    return text, image


@pytest.fixture(scope="module")
def painted(served):
    """An image of `/v1/images/generations` in base64."""
    asked = {"model": MODEL, "prompt": "a red circle", "seed": 4}
    return served.post("/v1/images/generations", **asked).json()["data"][0]["b64_json"]


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as made:
        yield made


def images_of(message):
    return [image["image_url"]["url"] for image in message.images]


def test_openai_asks_for_whole_answers(client, plain):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "lwm"
    raw = client.chat.completions.with_raw_response.create(**ASK)
    assert raw.status_code == 200
    made, text = raw.parse(), plain[0]
    assert made.choices[0].message.content == text["choices"][0]["message"]["content"]
    assert made.choices[0].finish_reason == text["choices"][0]["finish_reason"]
    assert made.usage.prompt_tokens_details.cached_tokens >= 0
    assert made.usage.total_tokens == text["usage"]["total_tokens"]
    continued = client.completions.create(
        model=MODEL, prompt=["a red", "a blue"], max_tokens=4, logprobs=2, echo=True, n=2, seed=1
    )
    assert [choice.index for choice in continued.choices] == [0, 1, 2, 3]
    logprobs = continued.choices[2].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    assert logprobs.text_offset[0] == 0


def test_openai_reads_streams(client, plain):
    with client.chat.completions.create(
        **ASK, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain[0]["choices"][0]["message"]["content"]
    assert chunks[-1].usage.total_tokens == plain[0]["usage"]["total_tokens"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    # The client's own accumulation, which is strict about the form.
    with client.chat.completions.stream(**ASK) as stream:
        for _ in stream:
            pass
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == text


def test_openai_takes_images_of_answers(client, plain):
    wanted = [image["image_url"]["url"] for image in plain[1]["choices"][0]["message"]["images"]]
    more = {"extra_body": {"modalities": ["text", "image"]}}
    made = client.chat.completions.create(**ASK_IMAGE, **more)
    assert images_of(made.choices[0].message) == wanted
    chunks = client.chat.completions.create(**ASK_IMAGE, **more, stream=True)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    found = [url for delta in deltas if hasattr(delta, "images") for url in images_of(delta)]
    assert found == wanted
    # What was drawn may be asked about.
    turns = [*DRAW, {"role": "assistant", "content": "", "images": made.choices[0].message.images}]
    turns += [{"role": "user", "content": "What is in the picture?"}]
    again = client.chat.completions.create(**ASK | {"messages": turns})
    assert again.usage.prompt_tokens_details.image_tokens > 64


def test_openai_raises_its_own_errors(client, start):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**ASK | {"model": "gpt-4o"})
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK | {"temperature": -1})
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", "temperature")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            **ASK | {"messages": [{"role": "user", "content": "a " * 9999}]}
        )
    assert caught.value.code == "context_length_exceeded"
    broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK | {"messages": [{"role": "user", "content": broken}]})
    assert caught.value.param == "messages.0.content.0.image_url.url"
    url = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(**ASK | {"messages": [{"role": "user", "content": url}]})
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**ASK, tools=[{"type": "function"}])
    assert (caught.value.status_code, caught.value.param) == (501, "tools")
    keyed = start(api_key=("key",))
    with openai.OpenAI(base_url=keyed.url, api_key="other", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        assert stranger.with_options(api_key="key").models.list().data[0].id == MODEL


def test_openai_asks_for_many_answers_at_once(served, plain):
    async def ask(client, number):
        if number % 2:
            stream = await client.chat.completions.create(**ASK, stream=True)
            return "".join([part.choices[0].delta.content or "" async for part in stream])
        made = await client.chat.completions.create(**ASK)
        return made.choices[0].message.content

    async def leave(client):
        """Closes a stream after its first event."""
        body = ASK | {"max_tokens": 1000, "extra_body": {"ignore_eos": True, "min_tokens": 900}}
        async with await client.chat.completions.create(**body, stream=True) as stream:
            await anext(aiter(stream))

    async def run():
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
            return await asyncio.gather(
                *(ask(client, number) for number in range(12)), leave(client)
            )

    *texts, _ = asyncio.run(run())
    assert set(texts) == {plain[0]["choices"][0]["message"]["content"]}
    deadline = time.monotonic() + 30
    while served.client.get("/load").json()["server_load"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.client.get("/load").json()["server_load"] == 0


# Clients that a test run of the package does not install.


def run(command, *, seconds=120, **more):
    """Runs a program without proxies, and returns the JSON that it prints last."""
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | more
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


LITELLM = """
import json, sys
import litellm

url, asked, image = sys.argv[1], *map(json.loads, sys.argv[2:])
same = {"api_base": url, "api_key": "none", "num_retries": 0}
asked["model"] = image["model"] = "openai/tiny-vision"
whole = litellm.completion(**asked, **same)
chunks = list(litellm.completion(**asked, **same, stream=True))
drawn = litellm.completion(**image, modalities=["text", "image"], **same)
painted = litellm.image_generation(
    "a red circle", model="openai/tiny-vision", extra_body={"seed": 4}, api_base=url, api_key="none"
)
try:
    litellm.completion(**asked | {"model": "openai/other"}, **same)
except litellm.NotFoundError as error:
    refused = str(error)
print()
print(json.dumps({
    "whole": whole.choices[0].message.content,
    "tokens": whole.usage.total_tokens,
    "stream": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
    "images": [each["image_url"]["url"] for each in drawn.choices[0].message.images],
    "painted": painted.data[0].b64_json,
    "refused": refused,
}))
"""


@pytest.mark.clients
def test_litellm(served, plain, painted):
    pytest.importorskip("litellm", reason="LiteLLM is not installed")
    # Otherwise it fetches a list of prices.
    command = [sys.executable, "-c", LITELLM, served.url, json.dumps(ASK), json.dumps(ASK_IMAGE)]
    found = run(command, LITELLM_LOCAL_MODEL_COST_MAP="True")
    text, image = (each["choices"][0]["message"] for each in plain)
    assert found["whole"] == found["stream"] == text["content"]
    assert found["tokens"] == plain[0]["usage"]["total_tokens"]
    assert found["images"] == [each["image_url"]["url"] for each in image["images"]]
    assert found["painted"] == painted
    assert "this server has 'tiny-vision'" in found["refused"]


@pytest.fixture(scope="module")
def node(npm):
    """A folder with packages of npm."""
    return npm("clients", JS)


def run_script(node, name, served):
    script = shutil.copy(SCRIPTS / name, node / name)
    return run(["node", script, served.url, json.dumps(ASK), json.dumps(ASK_IMAGE)])


@pytest.mark.clients
def test_openai_for_javascript(node, served, plain, painted):
    found = run_script(node, "openai_client.mjs", served)
    text, image = (each["choices"][0]["message"] for each in plain)
    assert found["models"] == [MODEL]
    assert found["whole"] == found["stream"] == text["content"]
    assert found["tokens"] == plain[0]["usage"]["total_tokens"]
    assert found["images"] == [each["image_url"]["url"] for each in image["images"]]
    assert found["painted"] == found["last"] == painted
    kinds = ["image_generation.partial_image", "image_generation.completed"]
    assert found["events"] == kinds
    assert found["refused"] == {"status": 400, "param": "temperature"}
    assert found["missing"] == {"status": 404, "code": "model_not_found"}


@pytest.mark.clients
def test_the_ai_sdk(node, served, plain, painted):
    found = run_script(node, "ai_sdk_client.mjs", served)
    text = plain[0]["choices"][0]["message"]["content"]
    assert found["whole"] == found["stream"] == text
    assert found["tokens"] == [plain[0]["usage"]["total_tokens"]] * 2
    assert found["reason"] == plain[0]["choices"][0]["finish_reason"]
    assert found["painted"] == painted
    assert found["refused"] == 404


@pytest.mark.clients
@pytest.mark.filterwarnings("ignore")
def test_scores_of_lm_eval_are_those_of_the_model_itself(served, drawing, monkeypatch):
    for package in ("lm_eval", "tenacity"):
        pytest.importorskip(package, reason="lm-eval[api] is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from lwm.eval.harness import HarnessModel

    monkeypatch.setenv("NO_PROXY", "*")
    there = LocalCompletionsAPI(
        base_url=f"{served.url}/completions",
        model=MODEL,
        max_length=512,
        batch_size=3,
        custom_prefix_token_id=drawing.tokenizer.bos_id,  # itself it takes 0 for none
    )
    assert there.tokenizer_backend == "remote"
    # There one id is left out for the answer, and one for the prefix.
    here = HarnessModel(drawing, max_length=510, add_bos_token=False)
    tokenizer: Any = there.tokenizer
    ids = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ids == (drawing.tokenizer.bos_id, drawing.tokenizer.eos_id)

    def instances(kind, *arguments):
        return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]

    asked = {"until": ["\n"], "max_gen_toks": 1}
    (likeliest,) = there.generate_until(instances("generate_until", ("a red square", asked)))
    pairs = [
        *(("a red square", " to the left"), ("The sky is", " blue"), ("", "hundred points")),
        *(
            ("a red square", likeliest),
            ("What is this? ", "a cat\n"),
            ("a " * 600, "red"),
            ("ä€", "😀 ç"),
        ),
    ]
    scored = instances("loglikelihood", *pairs)
    theirs, ours = there.loglikelihood(scored), here.loglikelihood(scored, disable_tqdm=True)
    assert theirs[3][1], "what the model itself would write"
    assert [greedy for _, greedy in theirs] == [greedy for _, greedy in ours]
    for (their, _), (our, _) in zip(theirs, ours, strict=True):
        assert their == pytest.approx(our, abs=1e-4)
    rolled = instances("loglikelihood_rolling", ("a red square left of a blue one " * 40,))
    their, our = there.loglikelihood_rolling(rolled), here.loglikelihood_rolling(rolled)
    assert their == pytest.approx(our, abs=1e-3)  # a sum over several windows
    asked["max_gen_toks"] = 8
    generated = instances("generate_until", ("a red square", asked), ("The sky is", asked))
    assert there.generate_until(generated) == here.generate_until(generated)


VALID = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a red square"}]},
    "/v1/completions": {"prompt": [5, 6, 7]},
    "/tokenize": {"prompt": "a red square"},
    "/detokenize": {"tokens": [5, 6, 7]},
    "/apply-template": {"messages": [{"role": "user", "content": "a red square"}]},
    "/v1/images/generations": {"prompt": "a red circle", "size": None, "frame_count": None},
}
"""Fields that make a request of a route valid, where its others are."""


def shortened(body):
    """Lowers what a valid request costs."""
    for name in ("max_tokens", "max_completion_tokens", "min_tokens", "n", "frame_count"):
        if isinstance(body.get(name), int) and body[name] > 3:
            body[name] = 3
    if body.get("max_tokens") is None:
        body["max_tokens"] = 3
    return body


@pytest.mark.clients
@pytest.mark.filterwarnings("ignore")
def test_requests_of_every_form_have_documented_answers(served):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given, settings

    made = schemathesis.openapi.from_url(f"{served.root}/openapi.json")
    same = settings(
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    answered = collections.Counter()

    def ask(operation, mode, count, valid=None):
        documented = {int(code) for code in operation.definition.raw["responses"]}

        @settings(same, max_examples=count)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            if isinstance(case.body, dict):
                case.body = shortened(case.body | (valid or {}))
            answer = case.call(timeout=60)
            answered[operation.path, answer.status_code] += 1
            assert answer.status_code in documented - {500, 502, 503, 504}, answer.text
            if answer.status_code < 400:
                return
            (error,) = answer.json().values()
            assert answer.headers["content-type"] == ["application/json"]
            assert error["message"]
            assert set(error) >= {"type", "param", "code"}
            if answer.status_code == 501:
                assert error["type"] == "not_supported_error"
                assert error["param"] in case.body

        check()

    modes = schemathesis.GenerationMode
    for found in made.get_all_operations():
        operation = found.ok()
        count = 8 if "images" in operation.path else 25
        ask(operation, modes.POSITIVE, count)
        if (valid := VALID.get(operation.path)) is not None:
            ask(operation, modes.NEGATIVE, count)
            ask(operation, modes.POSITIVE, count, valid | {"model": None, "stream": False})
            assert answered[operation.path, 200] > count // 5
    assert {path for path, _ in answered} > {"/health", "/metrics", "/v1/models/{name}", *VALID}
