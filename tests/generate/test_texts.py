"""`lwm generate text` with a small model: files of answers, and commands that go on."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from lwm.cli import texts
from lwm.cli.answer_file import open_answers
from lwm.cli.texts import generate_text
from lwm.data.prompts import Prompt
from lwm.errors import UserError
from lwm.generate.language_model import LanguageModel
from lwm.sampling_params import SamplingParams
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

RANDOM = SamplingParams(max_tokens=8, temperature=1.0)
LINES = [
    {"prompt": "The sea", "id": "a", "tags": [1, None]},
    {"messages": [{"role": "user", "content": "Why?"}], "id": 2},
    {"prompt": "Once \ud83d", "id": "half"},
    {"conversations": [{"from": "human", "value": "What?"}], "source": "b"},
    {"prompt": "A tiger"},
]


@pytest.fixture(scope="module")
def opened(tiny, init, byte_tokenizer):
    with jax.set_mesh(mesh := make_mesh()):
        llama = init(tiny(num_layers=1, tokens=TokenSpace(text=byte_tokenizer.vocab_size)))
        yield LanguageModel(name="tiny", llama=llama, tokenizer=byte_tokenizer, mesh=mesh)


@pytest.fixture
def ask(opened, monkeypatch, tmp_path):
    """Answers prompts of a file into another file, and returns the lines of that."""
    monkeypatch.setattr(texts, "open_model", lambda name, options: opened)
    file = tmp_path / "prompts.jsonl"

    def make(out, *, lines=LINES, sampling=RANDOM, **options):
        file.write_text("\n".join(map(json.dumps, lines)))
        generate_text("tiny", prompts_from=file, out=out, sampling=sampling, **options)
        return read(out)

    return make


def read(out):
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def bare(answers):
    """Returns all but the usage, which depends on what was read before, in the prompts' order."""
    for answer in answers:
        del answer["usage"]
    return sorted(answers, key=lambda each: (each["index"], each["number"]))


def test_answers_keep_the_fields_of_their_prompts(ask, tmp_path, capsys):
    found = ask(tmp_path / "out.jsonl", n=2)
    assert capsys.readouterr().out == f"{tmp_path / 'out.jsonl'}\n"
    assert {(each["index"], each["number"]) for each in found} == {
        (index, number) for index in range(len(LINES)) for number in range(2)
    }
    for each in found:
        line = LINES[each["index"]]
        kept = {key: each[key] for key in line}
        assert kept == (line if line.get("id") != "half" else {"prompt": "Once �", "id": "half"})
        assert set(each) - set(line) == {
            *("index", "number", "text", "ids", "logprobs", "finish_reason", "usage")
        }
        assert each["usage"]["completion_tokens"] == len(each["ids"]) == len(each["logprobs"])


def test_what_does_not_fit_is_named_and_the_rest_is_answered(ask, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    lines = [LINES[0], {"prompt": "word " * 200}, LINES[1], {"messages": []}]
    with pytest.raises(UserError, match="2 of 4 prompts have no answer; the reasons are above"):
        ask(out, lines=lines)
    assert sorted(each["index"] for each in read(out)) == [0, 2]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": the ")[0] for line in said[:2]] == [
        f"lwm: {tmp_path / 'prompts.jsonl'}, line {number}" for number in (2, 4)
    ]
    assert said[2].startswith("lwm: 2 answers with ")


def test_the_same_command_goes_on_where_it_stopped(ask, tmp_path, capsys):
    whole = ask(tmp_path / "whole.jsonl", n=2)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    out = tmp_path / "out.jsonl"
    for kept in (0, 3, 9, 10):
        out.write_bytes(b"".join(lines[:kept]) + (lines[kept][:20] if kept < len(lines) else b""))
        beside = (tmp_path / "whole.jsonl.run.json").read_bytes()
        (tmp_path / "out.jsonl.run.json").write_bytes(beside)
        capsys.readouterr()
        assert bare(ask(out, n=2)) == bare(list(map(dict, whole)))
        said = capsys.readouterr().err
        assert ("10 answers are in" in said) == (kept > 0)
        assert f"lwm: {10 - kept} answers with" in said
        assert out.read_bytes().startswith(b"".join(lines[:kept]))


def test_a_file_of_other_answers_is_refused(ask, opened, tmp_path):
    out = tmp_path / "out.jsonl"
    before = ask(out, lines=LINES[:2])
    with pytest.raises(UserError, match="holds answers to other prompts; choose another --out"):
        ask(out, lines=LINES[1:3])
    with pytest.raises(UserError, match=r"another run: sampling\.max_tokens was 8, is 9;"):
        ask(out, lines=LINES[:2], sampling=SamplingParams(max_tokens=9, temperature=1.0))
    beside = tmp_path / "out.jsonl.run.json"
    settings = json.loads(beside.read_text())
    settings["model"]["name"] = "another"
    beside.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r'model\.name was "another", is "tiny"'):
        ask(out, lines=LINES[:2])
    beside.unlink()
    with pytest.raises(UserError, match=r"out\.jsonl exists; choose another --out"):
        ask(out, lines=LINES[:2])
    assert read(out) == before
    assert len(ask(out, lines=LINES[:3], overwrite=True)) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda line: b"no JSON\n",
        lambda line: line.replace(b'"index": 0', b'"index": 5'),
        lambda line: line.replace(b"sea", b"lake"),
        lambda line: line + line,
    ],
)
def test_a_line_that_is_no_answer_to_the_prompts_is_named(ask, tmp_path, change):
    out = tmp_path / "out.jsonl"
    ask(out, lines=LINES[:1])
    out.write_bytes(change(out.read_bytes()))
    with pytest.raises(UserError, match=r"out\.jsonl, line [12]: no answer to one of these"):
        ask(out, lines=LINES[:1])


def test_a_field_of_the_answer_is_refused_in_a_prompt(ask, tmp_path):
    with pytest.raises(UserError, match=r"line 2: the answer has a field 'text', too; rename it"):
        ask(tmp_path / "out.jsonl", lines=[LINES[0], {"prompt": "a", "text": "b"}])
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_is_replaced_by_the_first_answer_only(ask, tmp_path):
    (out := tmp_path / "out.jsonl").write_text("old")
    with pytest.raises(UserError, match="the prompt has 1,000 tokens"):
        ask(out, lines=[{"prompt": "word " * 200}], overwrite=True)
    assert out.read_text() == "old"
    assert [each["index"] for each in ask(out, lines=LINES[:1], overwrite=True)] == [0]


def test_one_command_at_a_time_writes_a_file(tmp_path):
    out, prompts = tmp_path / "out.jsonl", [Prompt.of("The sea", "prompt 1")]
    with open_answers(out, prompts, {}, overwrite=False) as first:
        with (
            pytest.raises(UserError, match=r"out\.jsonl is being written by another process"),
            open_answers(out, prompts, {}, overwrite=True),
        ):
            pass
        first.append(0, 0, {"text": "!"})
    assert read(out) == [{"prompt": "The sea", "index": 0, "number": 0, "text": "!"}]
    with open_answers(tmp_path / "none.jsonl", prompts, {}, overwrite=False):
        pass
    assert not (tmp_path / "none.jsonl").exists(), "an empty file is removed"


def test_texts_are_printed_in_the_order_of_the_prompts(opened, monkeypatch, capsys):
    monkeypatch.setattr(texts, "open_model", lambda name, options: opened)
    generate_text("tiny", ("The sea", "A tiger"), sampling=SamplingParams(max_tokens=0), n=2)
    assert capsys.readouterr().out == "The sea\nThe sea\nA tiger\nA tiger\n"
    with pytest.raises(UserError, match=r"^1 of 2 prompts have no answer"):
        generate_text("tiny", ("", "A tiger"), sampling=SamplingParams(max_tokens=0))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (
        "A tiger\n",
        "lwm: prompt 1: the prompt is empty; give some text to continue\n",
    )
    with pytest.raises(UserError, match=r"^the prompt is empty"):
        generate_text("tiny", ("",))


@pytest.mark.slow
@pytest.mark.representative
def test_a_killed_command_goes_on(tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    # Answers of one token come at once, the others after a while.
    stops = [{"messages": [{"role": "user", "content": f"The {n}"}], "id": n} for n in range(3)]
    goes_on = [{"prompt": f"The {n} " * 20, "id": n} for n in range(24)]
    prompts.write_text("\n".join(map(json.dumps, [*stops, *goes_on])))
    command = [
        *(sys.executable, "-c", "from lwm.cli.app import main; main()"),
        *("generate", "text", "tiny-vision", "--prompts-from", str(prompts)),
        *("--max-tokens", "150", "--temperature", "2.0", "--out", str(out)),
    ]
    with subprocess.Popen(command, env=os.environ) as first:
        while not out.exists() or out.read_bytes().count(b"\n") < 3:
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    before = out.read_bytes()
    assert 3 <= before.count(b"\n") < 27
    with out.open("ab") as file:
        file.write(b'{"prompt": "The')
    subprocess.run(command, check=True, env=os.environ)
    assert out.read_bytes().startswith(before)
    assert sorted(each["index"] for each in read(out)) == list(range(27))
