"""Prompts that `lwm generate text` reads."""

import gzip
import json

import pytest

from lwm.cli import generate
from lwm.cli.chat import read_document
from lwm.cli.generate import read_prompts
from lwm.errors import UserError
from lwm.generate import batch
from lwm.generate.batch import Completion


def test_a_line_of_json_may_hold_other_ends_of_lines(tmp_path):
    prompts = ["one\u2028two", "three\x85\x0cfour", "five\nsix"]
    lines = [json.dumps({"prompt": each}, ensure_ascii=False) for each in prompts]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\r\n".join([*lines, "", ""]), encoding="utf-8", newline="")
    assert read_prompts(file) == prompts


@pytest.mark.parametrize("name", ["p.ndjson", "P.JSONL", "p.json", "p.NdJson"])
def test_json_lines_are_read_as_such_under_each_of_their_names(tmp_path, name):
    (tmp_path / name).write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    assert read_prompts(tmp_path / name) == ["one", "two"]


def test_compressed_prompts_are_refused_by_name(tmp_path):
    (file := tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "one"}\n'))
    with pytest.raises(UserError, match=r"p\.jsonl\.gz is compressed; unpack it first"):
        read_prompts(file)


def test_prompts_of_text_and_what_an_editor_puts_before_them(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n two \n", encoding="utf-8-sig")
    assert read_prompts(file) == ["one", " two "]
    assert read_document(file) == "one\n\n two \n"


@pytest.mark.parametrize("line", ["[1]", "{}", '{"prompt": 5}', "{"])
def test_the_line_without_a_prompt_is_named(tmp_path, line):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl, line 3: no JSON object"):
        read_prompts(file)


@pytest.fixture
def model(monkeypatch):
    """Replace the model by one that adds `!` to the prompts, and fails at the prompt `fail`."""

    def completions(model, prompts, sampling, *, progress):
        for prompt in prompts:
            if prompt == "fail":
                raise UserError("the power failed")
            yield Completion(prompt=prompt, text="!", ids=(1,), logprobs=(0.0,), finish_reason="")

    monkeypatch.setattr(generate, "open_model", lambda name, options: None)
    monkeypatch.setattr(batch, "completions", completions)
    return "model"


def test_half_a_surrogate_pair_in_a_prompt_costs_no_results(tmp_path, model, capsys):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"prompt": "a\\ud83d"}\n{"prompt": "b\\ud83d\\ude00"}\n')
    generate.generate_text(model, ("c\udcff",), prompts_from=file, out=out)
    found = [json.loads(line)["prompt"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert found == ["c�", "a�", "b😀"]
    assert capsys.readouterr().out == f"{out}\n"


def test_results_before_a_failure_are_kept(tmp_path, model, capsys):
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    with pytest.raises(UserError, match="power"):
        generate.generate_text(model, ("fail", "b"), out=out, overwrite=True)
    assert out.read_text() == "old"
    with pytest.raises(UserError, match="power"):
        generate.generate_text(model, ("a", "b", "fail"), out=out, overwrite=True)
    assert [json.loads(line)["prompt"] for line in out.read_text().splitlines()] == ["a", "b"]
    capsys.readouterr()
    with pytest.raises(UserError, match="power"):
        generate.generate_text(model, ("a", "b", "fail"))
    assert capsys.readouterr().out == "a!\nb!\n"
