"""Prompts that `lwm generate text` reads."""

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
