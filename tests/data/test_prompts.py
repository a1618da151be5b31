"""Prompts and chats that are read from files."""

import gzip
import json

import pytest

from lwm.data.prompts import read_prompts
from lwm.errors import UserError
from lwm.formats.documents import read_document
from lwm.tokenizer.message import Message


def contents(file):
    return [prompt.content for prompt in read_prompts(file)]


def test_a_line_of_json_may_hold_other_ends_of_lines(tmp_path):
    prompts = ["one\u2028two", "three\x85\x0cfour", "five\nsix"]
    lines = [json.dumps({"prompt": each}, ensure_ascii=False) for each in prompts]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\r\n".join([*lines, "", ""]), encoding="utf-8", newline="")
    assert contents(file) == prompts


@pytest.mark.parametrize("name", ["p.ndjson", "P.JSONL", "p.json", "p.NdJson"])
def test_json_lines_are_read_as_such_under_each_of_their_names(tmp_path, name):
    (tmp_path / name).write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    assert contents(tmp_path / name) == ["one", "two"]


def test_compressed_prompts_are_refused_by_name(tmp_path):
    (file := tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "one"}\n'))
    with pytest.raises(UserError, match=r"p\.jsonl\.gz is compressed; unpack it first"):
        read_prompts(file)


def test_prompts_of_text_and_what_an_editor_puts_before_them(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n two \n", encoding="utf-8-sig")
    assert contents(file) == ["one", " two "]
    assert read_prompts(file)[1].fields == {"prompt": " two "}
    assert read_document(file) == "one\n\n two \n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "no JSON object"),
        ("{}", 'no JSON object with a text "prompt" or a chat "messages"'),
        ('{"prompt": 5}', "no JSON object with a text"),
        ("{", "no JSON object"),
        ('{"messages": "Hi"}', "key 'messages' should be a list"),
        ('{"messages": [{"role": "boss", "content": "Hi"}]}', "unknown role 'boss'"),
        ('{"messages": [], "prompt": "Hi"}', '"prompt" beside a chat'),
    ],
)
def test_the_line_without_a_prompt_is_named(tmp_path, line, reason):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(UserError, match=rf"prompts.jsonl, line 3: .*{reason}"):
        read_prompts(file)


def test_a_line_may_hold_a_chat_with_tools_and_fields_of_its_own(tmp_path):
    said = {"messages": [{"role": "user", "content": "Hi"}], "tools": [{"name": "look"}], "id": 3}
    shared = {"conversations": [{"from": "human", "value": "Ho"}], "system": "Be brief."}
    file = tmp_path / "chats.jsonl"
    file.write_text(f"{json.dumps(said)}\n\n{json.dumps(shared)}\n")
    first, second = read_prompts(file)
    assert first.content == [Message("user", ("Hi",))]
    assert (first.variables, first.fields) == ({"tools": [{"name": "look"}]}, said)
    assert second.content == [Message("system", ("Be brief.",)), Message("user", ("Ho",))]
    assert second.place == f"{file}, line 3"


def test_half_a_surrogate_pair_in_a_prompt_is_replaced(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a\\ud83d", "id": 1}\n{"prompt": "b\\ud83d\\ude00"}\n')
    assert contents(file) == ["a�", "b😀"]
    assert read_prompts(file)[0].fields == {"prompt": "a�", "id": 1}
