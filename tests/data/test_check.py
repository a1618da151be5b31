"""`lwm data check`: what it counts, what it calls bad, and when it fails."""

import json
import sys
from pathlib import Path

import pytest
import tokenizers

from lwm.cli.app import main

CONFIG = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}


@pytest.fixture
def folder(tmp_path):
    """Return a folder of a tokenizer whose tokens are bytes, and of a model without weights."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    table = {letter: number for number, letter in enumerate(letters)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(table, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["</s>"])
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def check(folder, monkeypatch, capsys):
    """Runs the command; returns its exit code, and the lines of its stdout and stderr."""

    def run(*arguments, tokens="--tokenizer"):
        given = [tokens, folder] if tokens else []
        monkeypatch.setattr(sys, "argv", ["lwm", "data", "check", *map(str, [*arguments, *given])])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return run


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def data(tmp_path):
    """Ten texts of 10 to 100 bytes; a prompt of 19, of which 17 are vision, and its answer."""
    texts = [json.dumps({"text": "x" * 10 * n}) for n in range(1, 11)]
    video = {"fields": "[vision],a", "vision": [8191] * 16, "a": "y" * 83}
    return write(tmp_path / "data.jsonl", [*texts, "", json.dumps(video)])


def test_counts(check, data):
    code, out, err = check(data, "--tokens-per-frame", "8")
    assert (code, err) == (0, [])
    # Each ends in `</s>`; `<vision>` and `</vision>` are 17 tokens, two frames and their ends 18.
    video = 17 + 18 + 83 + 1
    total = 550 + 10 + video
    assert out == [
        "examples   11",
        "bad lines  0",
        f"tokens     {total}",
        "length     min 11  median 61  p90 101  max 119",
        f"targets    {(total - 35) / total:.1%}",
        f"text       {(total - 18) / total:.1%}",
        f"vision     {18 / total:.1%}",
    ]


def test_bad_lines_are_told_and_too_many_fail(check, data, tmp_path):
    bad = write(tmp_path / "bad.jsonl", ["{", '{"text": 3}', *['{"b": 1}'] * 23])
    arguments = (data, bad, "--tokens-per-frame", "8", "--max-bad-share")
    code, out, err = check(*arguments, "0.7")
    assert (code, err) == (0, [])
    assert out[:2] == ["examples   11", "bad lines  25"]
    assert out[7].startswith(f"  {bad}:1: not JSON: ")
    assert out[8] == f"  {bad}:2: key 'text' should hold text, not 3"
    assert out[26].startswith(f"  {bad}:20: no key 'fields'")
    assert out[27:] == ["  and 5 more"]
    code, again, err = check(*arguments, "0.69")
    assert (code, again) == (2, out)
    assert len(err) == 1
    assert err[0].startswith("lwm: 69.4% of the lines are bad, more than 69.0%")
    code, out, _ = check(bad)
    assert (code, out[0]) == (2, "examples   0")


def test_a_model_says_what_it_reads(check, data):
    code, out, err = check(data, "--max-bad-share", "0.1", tokens="--model")
    assert (code, err) == (0, [])
    assert out[-1].endswith("data.jsonl:12: key 'vision' holds vision codes, but the model reads "
                            "no vision")  # fmt: skip
    assert out[1] == "bad lines  1"


def test_fields_on_the_command_line(check, tmp_path):
    file = write(tmp_path / "a.jsonl", ['{"q": "12345", "a": "123", "text": "no"}'])
    code, out, _ = check(file, "--fields", "[q],a", "--no-add-eos")
    assert code == 0
    assert out[2:5] == [
        "tokens     8",
        "length     min 8  median 8  p90 8  max 8",
        "targets    37.5%",
    ]


def test_texts_that_come_with_the_package(check):
    code, out, err = check("shipped:moby-dick/chapter-[12].txt", "--format", "text")
    assert (code, err) == (0, [])
    assert out[0] == "examples   2"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{tmp}/none.jsonl"], "none.jsonl does not exist"),
        (["{tmp}/none/*"], "does not exist, nor does any file match it"),
        (["{tmp}/blank.jsonl"], "no record, only blank lines"),
        (["shipped:x"], "shipped:x does not exist; there are shipped:moby-dick/chapter-1.txt,"),
        (["books:x"], "books:x: there are books:train and books:held-out"),
        (["{tmp}/model/tokenizer.json"], "bad"),
        ([], "give the files"),
        (["{tmp}/data.jsonl", "--model", "m"], "--model or --tokenizer"),
        (["{tmp}/data.jsonl", "--max-bad-share", "2"], "max_bad_share 2.0"),
        (["{tmp}/data.jsonl", "--tokens-per-frame", "0"], "tokens_per_frame 0"),
        (["{tmp}/data.jsonl", "--codes", "-1"], "codes -1"),
    ],
)
def test_what_cannot_be_checked_is_one_line(check, data, tmp_path, arguments, says):
    write(tmp_path / "blank.jsonl", ["", " "])
    code, _, err = check(*[argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    assert code == 2
    assert len(err) == 1
    assert err[0].startswith("lwm: ")
    assert says in err[0]
