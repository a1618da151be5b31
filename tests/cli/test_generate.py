"""Prompts that `lwm generate text` reads."""

import gzip
import json

import pytest

from lwm.cli.chat import read_document
from lwm.cli.generate import read_prompts
from lwm.errors import UserError


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
