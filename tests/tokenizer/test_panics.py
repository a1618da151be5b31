"""Errors of Rust's `tokenizers`, panics among them: one line, and no more records than are bad."""

import json
from pathlib import Path

import pytest
import tokenizers

from lwm.data.check import check
from lwm.data.fields import RecordEncoder
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.files import reading
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

from .test_controls import bytewise


def with_split(folder: Path, pattern: str) -> Path:
    """Writes a tokenizer of bytes that splits words by a pattern."""
    state = json.loads(bytewise().to_str())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    spell = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = [split | {"invert": False}, spell | {"trim_offsets": True}]
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (file := folder / "tokenizer.json").write_text(json.dumps(state))
    return file


@pytest.mark.parametrize("pattern", ["(a+)+$", r"(\w|\w\w)+$", r"(\s|\s\s)+\."])
def test_a_split_that_backtracks_without_end_is_refused(tmp_path, capfd, pattern):
    with pytest.raises(UserError, match=r"tokenizer\.json is corrupted or not a tokenizer") as e:
        Tokenizer.open(with_split(tmp_path, pattern))
    assert "\n" not in str(e.value)
    assert capfd.readouterr().err == ""


def test_a_text_on_which_a_split_fails_is_a_bad_one_alone(tmp_path):
    tokenizer = Tokenizer.open(with_split(tmp_path, "((xyz)+)+$"))
    with pytest.raises(UserError, match="cannot encode this text"):
        tokenizer.encode("xyz" * 40 + "!")
    assert tokenizer.decode(tokenizer.encode("plain")) == "plain"


def test_a_text_without_an_unknown_token_is_a_bad_record(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    encoder = RecordEncoder(tokenizer=Tokenizer.open(tmp_path), tokens=TokenSpace(text=1))
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "a b"}\n{"text": "a a"}\n')
    report = check(open_source(tmp_path / "a.jsonl"), encoder)
    assert (report.num_bad, len(report.lengths)) == (1, 2)
    assert "cannot encode this text: WordLevel error" in report.reasons[0]


def test_a_panic_while_a_file_is_read_names_the_file():
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(UserError, match="a cannot be read: index out of bounds"), reading("a"):
        raise panic("index out of bounds\nnote")
    with pytest.raises(KeyboardInterrupt), reading("a"):
        raise KeyboardInterrupt


def test_long_runs_of_spaces_before_a_token_that_takes_them_are_fast(tmp_path):
    made = bytewise()
    made.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, rstrip=True)])
    made.save(str(tmp_path / "tokenizer.json"))
    spaces = " " * 100_000
    assert Tokenizer.open(tmp_path).split(f"a{spaces}b  <mask>  c")[::2] == [f"a{spaces}b", "c"]
