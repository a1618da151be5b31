"""Texts that are continued and scored over HTTP, and tokens of texts."""

import json

import pytest


def test_prompts_in_four_forms_are_continued(served):
    tokenizer = served.service.model.tokenizer
    texts = ["A red circle", "The blue square is"]
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    body = {"max_tokens": 6, "temperature": 0}

    def answers(prompt):
        made = served.post("/v1/completions", prompt=prompt, **body).json()
        return [(c["text"], c["finish_reason"]) for c in made["choices"]]

    both = answers(texts)
    assert answers(ids) == both
    assert [answers(texts[0]), answers(ids[1])] == [both[:1], both[1:]]


def test_an_echo_has_the_prompt_and_its_scores(served):
    text = "A red circle"
    body = {"prompt": text, "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 2}
    (choice,) = served.post("/v1/completions", **body).json()["choices"]
    assert choice["text"].startswith(text)
    scores = choice["logprobs"]
    assert scores["token_logprobs"][0] is None
    assert scores["top_logprobs"][0] is None
    lengths = {len(values) for values in scores.values()}
    assert len(lengths) == 1
    for token, own, tops in zip(
        scores["tokens"][1:], scores["token_logprobs"][1:], scores["top_logprobs"][1:], strict=True
    ):
        assert tops[token] >= own
        assert 2 <= len(tops) <= 3 or len(tops) == 1
    plain = served.post("/v1/completions", **body | {"echo": False}).json()["choices"][0]
    count = len(plain["logprobs"]["tokens"])
    assert scores["tokens"][-count:] == plain["logprobs"]["tokens"]
    assert scores["token_logprobs"][-count:] == plain["logprobs"]["token_logprobs"]


def test_scores_without_an_answer(served):
    body = {"prompt": "A red circle", "max_tokens": 0, "echo": True, "logprobs": 0}
    made = served.post("/v1/completions", **body).json()
    assert made["choices"][0]["text"] == "A red circle"
    assert made["usage"]["completion_tokens"] == 0
    assert len(made["choices"][0]["logprobs"]["tokens"]) == made["usage"]["prompt_tokens"]


def test_a_stream_is_the_whole_text_in_parts(served):
    body = {"prompt": "A red circle", "max_tokens": 12, "seed": 3, "echo": True}
    whole = served.post("/v1/completions", **body).json()["choices"][0]
    answer = served.post("/v1/completions", **body, stream=True).text
    events = [each.removeprefix("data: ") for each in answer.split("\n\n") if each]
    assert events.pop() == "[DONE]"
    parts = [json.loads(each)["choices"][0] for each in events]
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert parts[-1]["finish_reason"] == whole["finish_reason"]


def test_a_stop_string_ends_a_text_before_it(served):
    body = {"prompt": "The", "max_tokens": 24, "temperature": 0}
    text = served.post("/v1/completions", **body).json()["choices"][0]["text"]
    stop = text[len(text) // 2 :][:2]
    choice = served.post("/v1/completions", **body, stop=["\0", stop]).json()["choices"][0]
    assert choice["text"] == text[: text.find(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [[]]}, 400, None),
        ({"prompt": [10**6]}, 400, "prompt"),
        ({"prompt": "a", "suffix": "b"}, 501, "suffix"),
        ({"prompt": "a", "best_of": 3}, 501, "best_of"),
        ({"prompt": "a", "logprobs": 99}, 400, "logprobs"),
    ],
)
def test_a_wrong_field_is_named(served, fields, status, param):
    answer = served.post("/v1/completions", **fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert param is None or error["param"].startswith(param)


def test_the_same_seed_answers_alike_and_another_does_not(served):
    def answer(**seed):
        body = {"prompt": "The", "max_tokens": 24, "temperature": 2.0, "ignore_eos": True}
        return served.post("/v1/completions", **body, **seed).json()["choices"][0]["text"]

    assert answer(seed=1) == answer(seed=1) == answer(seed=1 - 2**32)
    assert len({answer(seed=1), answer(seed=2), answer(), answer()}) == 4


def test_biases_stop_ids_and_least_lengths_change_an_answer(served):
    body = {"prompt": "The", "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    (plain,) = served.post("/v1/completions", **body).json()["choices"]
    first = plain["token_ids"][0]
    banned = served.post("/v1/completions", **body, logit_bias={str(first): -100}).json()
    assert first not in banned["choices"][0]["token_ids"]
    stopped = served.post("/v1/completions", **body, stop_token_ids=[first]).json()["choices"][0]
    assert (stopped["token_ids"], stopped["finish_reason"]) == ([first], "stop")
    assert plain["finish_reason"] == "stop"
    longer = served.post("/v1/completions", **body, min_tokens=8).json()["choices"][0]
    assert (len(longer["token_ids"]), longer["finish_reason"]) == (8, "length")
    assert served.post("/v1/completions", **body, logit_bias={"a": 1}).status_code == 400


def test_tokens_of_a_text_in_both_spellings(served):
    tokenizer = served.service.model.tokenizer
    plain = tokenizer.encode("A red circle", special=False)
    ours = served.post("/tokenize", prompt="A red circle", return_token_strs=True).json()
    assert ours["tokens"] == [tokenizer.bos_id, *plain]
    assert ours["max_model_len"] == 2048
    assert "".join(ours["token_strs"][1:]) == "A red circle"
    theirs = served.post("/tokenize", content="A red circle", with_pieces=True).json()
    assert [each["id"] for each in theirs["tokens"]] == plain
    text = served.post("/detokenize", tokens=plain).json()
    assert text["prompt"] == text["content"] == "A red circle"
    assert served.post("/detokenize", tokens=[10**6]).status_code == 400
    assert served.post("/tokenize").status_code == 400


def test_a_template_is_applied(served):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = served.post("/apply-template", messages=messages).json()["prompt"]
    assert "Be brief." in prompt
    assert prompt.endswith("ASSISTANT:")
    ids = served.post("/tokenize", messages=messages).json()["tokens"]
    assert served.service.model.tokenizer.decode(ids, skip_special=False) == prompt
