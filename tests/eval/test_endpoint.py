"""Questions to a server that answers by a program, in bytes for tokens, and fails at times."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lwm.errors import UserError
from lwm.eval.ask import ask
from lwm.eval.endpoint import (
    EndpointAnswerer,
    Opening,
    ServedModel,
    endpoint_subject,
    tokenizer_digest,
)
from lwm.eval.form import PromptForm
from lwm.eval.prompt import PromptEncoder
from lwm.eval.report.facts import machine
from lwm.eval.results import Results
from lwm.eval.server import Server, base_url

from .endpoint_server import FAULTS, serving
from .numbers_asked import Numbers, program


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(program) as server:
        yield server


@pytest.fixture
def evaluate(fake, byte_tokenizer, tmp_path):
    """Asks the server's model; returns the evaluation and its rows by index, without usage."""

    def run(
        count: int = 20,
        *,
        form: PromptForm = "chat",
        opening: str = "",
        out: str = "results.jsonl",
        progress: Callable[[int], None] = lambda done: None,
        mode: Opening = "message",
        extra: dict[str, Any] | None = None,
        **options: Any,
    ):
        defaults: dict[str, Any] = {"pause": 0.001, "connections": 3}
        server = Server(url=fake.url, **defaults | options)
        subject = endpoint_subject(
            server, ServedModel.find(server), byte_tokenizer, opening=mode, extra=extra
        )
        evaluation = Numbers(PromptEncoder(tokenizer=byte_tokenizer, form=form), count, opening)
        results = Results(tmp_path / out, {"model": subject.description})
        answerer = subject.answerer(0, progress)
        ask(evaluation, answerer, results)
        return evaluation, sorted(results.rows, key=lambda row: row["index"])

    return run


def test_one_request_in_five_fails_and_the_results_are_the_same(evaluate, fake):
    _, whole = evaluate(30, out="whole.jsonl")
    assert [row["score"] for row in whole] == [1.0] * 30
    fake.asked.clear()
    fake.fault = lambda number: FAULTS[number // 5 % len(FAULTS)] if number % 5 == 2 else None
    _, rows = evaluate(30, timeout=0.2)
    assert rows == whole
    assert len(fake.asked) == 30, "what was answered is not asked again"


def test_as_many_questions_are_asked_at_a_time_as_allowed(evaluate, fake):
    fake.together = threading.Barrier(3)  # none is answered before three are there
    evaluation, rows = evaluate(12, connections=3)
    assert len(rows) == 12
    assert fake.peak == 3
    fake.together, fake.peak = None, 0
    evaluate(4, connections=1, out="one.jsonl")
    assert fake.peak == 1
    assert evaluation.built == list(range(12))


def test_prompts_are_built_only_when_they_can_be_sent(fake, byte_tokenizer):
    evaluation = Numbers(PromptEncoder(tokenizer=byte_tokenizer), 12)
    server = Server(url=fake.url, connections=3)
    answers = EndpointAnswerer(server, "oracle").answers(map(evaluation.question, evaluation.cells))
    for answered in range(1, 10):
        next(answers)
        assert len(evaluation.built) == 3 + answered - 1
    answers.close()
    assert not [each for each in threading.enumerate() if each.name == "lwm-endpoint"]


def test_a_server_that_cuts_prompts_is_refused(evaluate, fake):
    fake.cut = 150
    with pytest.raises(UserError, match=r"the server read 150 tokens of a message of 15\d"):
        evaluate()


def test_a_server_that_does_not_count_is_refused(evaluate, fake):
    fake.usage = False
    with pytest.raises(UserError, match=r"does not count the tokens of prompts .*cut them"):
        evaluate()


def test_what_was_answered_is_not_asked_again(evaluate, fake):
    stop_at = 7
    _, whole = evaluate(out="whole.jsonl")
    fake.asked.clear()
    fake.refusal = lambda values: "the end" if len(fake.asked) >= stop_at else None
    with pytest.raises(UserError, match=r"refuses a prompt of .* status 400: the end"):
        evaluate(connections=1)
    fake.refusal = lambda values: None
    evaluation, rows = evaluate(connections=1)
    assert rows == whole
    assert evaluation.built == list(range(stop_at, 20))
    assert len(fake.asked) == 20


def test_ctrl_c_ends_the_requests_at_once(evaluate, fake):
    fake.fault = lambda number: "never" if number else None
    begun = []

    def progress(done):
        begun.append(time.monotonic())
        if len(begun) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(timeout=60.0, progress=progress)
    assert time.monotonic() - begun[-1] < 10
    assert not [each for each in threading.enumerate() if each.name == "lwm-endpoint"]


def test_a_server_that_stays_down_is_given_up(evaluate, fake):
    fake.fault = lambda number: "500" if number else None
    with pytest.raises(UserError) as given:
        evaluate(retries=3, connections=1)
    assert str(given.value) == (
        f"{fake.url} failed 4 times in a row, the last time with: status 500: out of memory; once "
        "it works, the same command continues"
    )
    assert next(fake.numbers) == 5


def test_a_wrong_key_is_named_and_not_shown(evaluate, fake, tmp_path):
    fake.key = "sk-right"
    with pytest.raises(UserError, match=r"API key, or the lack of one: status 401"):
        evaluate()
    with pytest.raises(UserError, match="status 401: Incorrect API key: Bearer …") as given:
        evaluate(key="sk-wrong")
    assert "sk-" not in str(given.value)
    evaluate(key="sk-right")
    assert all(b"sk-" not in file.read_bytes() for file in tmp_path.iterdir())
    assert "sk-" not in repr(Server(url=fake.url, key="sk-right"))


def test_a_wrong_url_is_named(fake, byte_tokenizer):
    wrong = Server(url=f"{fake.url}/x", pause=0.001)
    with pytest.raises(UserError, match=r"/v1/x does not list its models .status 404: Not Found"):
        ServedModel.find(wrong)
    absent = Server(url="http://127.0.0.1:9/v1", pause=0.001)
    with pytest.raises(UserError, match=r"^http://127.0.0.1:9/v1 failed 4 times .*ConnectError"):
        ServedModel.find(absent)


def test_the_only_model_is_chosen_and_several_are_listed(fake):
    server = Server(url=fake.url, pause=0.001)
    assert ServedModel.find(server) == ServedModel(name="oracle")
    fake.models = [{"id": "a", "max_model_len": 4096}, {"id": "b"}]
    assert ServedModel.find(server, "a") == ServedModel(name="a", context=4096)
    with pytest.raises(UserError, match="serves a, b; name the model that is to answer"):
        ServedModel.find(server)
    fake.models = []
    with pytest.raises(UserError, match="lists no model"):
        ServedModel.find(server)


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("https://host/v1", "https://host/v1"),
        ("https://host/api/v1/", "https://host/api/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai"),
    ],
)
def test_a_url_may_leave_out_the_version(given, base):
    assert base_url(given) == base


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("host:8000", "is no URL of a server; give one such as"),
        ("http://", "is no URL"),
        ("http://host:x", "is no URL"),
        ("http://me:secret@host:x", "keys and passwords belong into the environment"),
        ("http://host/?key=secret", "keys and passwords belong into the environment"),
    ],
)
def test_a_text_that_is_no_url_is_refused_without_secrets(url, reason):
    with pytest.raises(UserError, match=reason) as given:
        base_url(url)
    assert "secret" not in str(given.value)


def test_an_opening_ends_the_message_or_begins_a_turn(evaluate, fake):
    _, rows = evaluate(1, opening=" It is")
    assert rows[0]["score"] == 1
    evaluate(1, opening=" It is", mode="continue", out="other.jsonl")
    first, second = (values for _, values in fake.asked)
    (turn,) = first["messages"]
    assert turn["content"].endswith("number is 0 It is")
    assert "continue_final_message" not in first
    assert second["messages"][1] == {"role": "assistant", "content": " It is"}
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize("form", ["text", "lwm"])
def test_other_forms_than_chats_are_texts_to_complete(evaluate, fake, form):
    _, rows = evaluate(2, form=form, opening=" It is")
    assert [row["score"] for row in rows] == [1.0, 1.0]
    path, values = fake.asked[0]
    assert path == "/v1/completions"
    around = values["prompt"].split("word ", 1)[0]
    assert around == ("" if form == "text" else "You are a helpful assistant. USER: ")
    assert values["prompt"].endswith(" It is")
    assert values["temperature"] == 0
    assert values["max_tokens"] == 16


def test_fields_can_be_added_and_left_out(evaluate, fake):
    evaluate(1, extra={"seed": 7, "temperature": None})
    ((_, values),) = fake.asked
    assert values["seed"] == 7
    assert "temperature" not in values


def test_the_newer_name_of_the_limit_is_used_where_it_is_asked_for(evaluate, fake):
    fake.refusal = lambda values: (
        "use 'max_completion_tokens' instead" if "max_tokens" in values else None
    )
    for number in range(5):  # two requests may find it out at once
        evaluate(4, connections=2, out=f"{number}.jsonl")
    assert all(values["max_completion_tokens"] == 16 for _, values in fake.asked)


def test_an_answer_without_text_is_empty_and_another_form_is_refused(fake, evaluate):
    fake.answer = lambda prompt: ""
    plain = fake.respond

    def without_text(path, values):
        found = plain(path, values)
        found["choices"][0]["message"]["content"] = None
        return found

    fake.respond = without_text
    _, rows = evaluate(1)
    assert rows[0]["response"] == ""
    fake.respond = lambda path, values: {"data": []}
    with pytest.raises(UserError, match="answers in another form than OpenAI's API"):
        evaluate(2)


def test_waits_follow_the_server_or_grow(fake):
    from lwm.eval.server import Session, _seconds

    assert _seconds("3") == 3
    assert _seconds("-3") == _seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert _seconds(None) is _seconds("soon") is None
    session = Session(Server(url=fake.url, timeout=60.0))
    assert [session._pause(0, 2.0), session._pause(0, 1e9)] == [2.0, 60]
    growing = [session._pause(done, None) for done in range(12)]
    assert all(0.25 * 2**n <= growing[n] <= 0.5 * 2**n for n in range(6))
    assert all(15 <= pause <= 30 for pause in growing[6:])
    session.close()


def test_the_description_is_of_the_model_and_not_of_the_place(fake, byte_tokenizer):
    model = ServedModel(name="oracle")
    here = endpoint_subject(Server(url=fake.url, key="sk-1"), model, byte_tokenizer)
    there = endpoint_subject(Server(url="http://other/v1"), model, byte_tokenizer)
    assert here.description == there.description
    assert "127.0.0.1" not in json.dumps(here.description)
    found = machine(here.elsewhere)
    assert found["devices"] == "those of a server"
    assert "device_memory" not in found
    other = dataclasses.replace(byte_tokenizer, chat_template="{{ messages }}")
    assert tokenizer_digest(other) != tokenizer_digest(byte_tokenizer)
