"""The needle test asked of programs that read or do not, stopped, killed and continued."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from lwm.errors import UserError
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.run import REPORT, RESULTS, check
from lwm.files import exclusive
from lwm.tokenizer.tokenizer import Tokenizer

GRID = NeedleConfig(lengths=(700, 1400), depths=(0.0, 30.0, 100.0), rounds=2, max_tokens=40)
SEVERAL = NeedleConfig(lengths=(900, 1400), rounds=2, needles=4, ask=2, max_tokens=40)


@pytest.mark.parametrize("prompt", ["chat", "lwm"])
def test_a_program_that_reads_finds_all_and_a_blind_one_none(
    tokenizer, oracle, blind, ask_program, tmp_path, prompt
):
    config = dataclasses.replace(GRID, prompt=prompt)
    seeing = ask_program(oracle(tokenizer), config, tokenizer, tmp_path / "seeing")
    guessing = ask_program(blind(tokenizer), config, tokenizer, tmp_path / "blind")
    assert (seeing.score().accuracy, guessing.score().accuracy) == (1, 0)
    assert seeing.score().asked == len(seeing.rows) == 2 * 3 * 2
    assert {"context_length", "depth_percent", "response", "answer", "correct", "seed"} <= set(
        seeing.rows[0]
    )
    for row in seeing.rows:
        assert row["prompt_tokens"] + config.answer_tokens == row["built_length"]
        assert row["built_length"] <= row["context_length"]
        assert (row["score"], row["truncated"]) == (1, 0)


@pytest.mark.parametrize("config", [GRID, SEVERAL])
@pytest.mark.parametrize("lost", [1, 400, 10**6])
def test_what_was_stopped_ends_as_if_it_had_not_been(
    byte_tokenizer, oracle, ask_program, tmp_path, config, lost
):
    whole, again = oracle(byte_tokenizer), oracle(byte_tokenizer)
    ask_program(whole, config, byte_tokenizer, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == (4 if config is GRID else 2)
    torn = before[RESULTS][: -min(lost, len(before[RESULTS]))]
    (tmp_path / RESULTS).write_bytes(torn)
    (tmp_path / REPORT).unlink()
    ask_program(again, config, byte_tokenizer, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    answered = max(0, torn.count(b"\n") - 1)
    assert again.asked == whole.asked[answered:]


def test_other_questions_do_not_mix_in(byte_tokenizer, oracle, blind, ask_program, tmp_path):
    ask_program(oracle(byte_tokenizer), GRID, byte_tokenizer, tmp_path)
    other = dataclasses.replace(GRID, max_tokens=41)
    with pytest.raises(UserError, match=r"config\.max_tokens was 40, is 41.*choose another folder"):
        ask_program(blind(byte_tokenizer), other, byte_tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"config\.needles was 1, is 4"):
        check(SEVERAL, tmp_path)
    with pytest.raises(UserError, match=r"config\.seed was 1234, is 5"):
        check(dataclasses.replace(GRID, seed=5), tmp_path)
    check(GRID, tmp_path)


def test_killed_at_any_moment_it_goes_on(byte_tokenizer, oracle, ask_program, tmp_path):
    """A process of its own is killed as nobody can prevent; here the same code goes on."""
    byte_tokenizer.backend._tokenizer.save(str(tmp_path / "tokenizer.json"))
    program = f"""
import time
from pathlib import Path
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.run import evaluate
from lwm.eval.question import Response
from lwm.eval.subject import Subject
from lwm.tokenizer.tokenizer import Tokenizer

class Slow:
    def answers(self, questions):
        for question in questions:
            print("asked", flush=True)
            time.sleep(0.02)
            yield question, Response(
                text="0", prompt_tokens=len(question.ids), completion_tokens=1
            )

subject = Subject(
    description={{"name": "program"}},
    tokenizer=Tokenizer.open(Path("tokenizer.json")),
    answerer=lambda tokens, progress: Slow(),
)
evaluate(subject, {GRID!r}, Path("out"))
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout
        for _ in range(4):
            assert process.stdout.readline() == b"asked\n"
        process.kill()
    answered = (tmp_path / "out" / RESULTS).read_bytes().count(b"\n") - 1
    assert 3 <= answered < 12
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json")
    ask_program(again := oracle(tokenizer), GRID, tokenizer, tmp_path / "out")
    assert len(again.asked) == 12 - answered


def test_two_evaluations_in_one_folder_do_not_mix(byte_tokenizer, blind, ask_program, tmp_path):
    with (
        exclusive(tmp_path),
        pytest.raises(UserError, match="is being written by another process"),
    ):
        ask_program(blind(byte_tokenizer), GRID, byte_tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_report_says_what_was_done(byte_tokenizer, oracle, ask_program, tmp_path, prose):
    config = dataclasses.replace(GRID, haystack=prose(20), repeat=True)
    ask_program(oracle(byte_tokenizer), config, byte_tokenizer, tmp_path)
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["haystack"]["is_repeated"] is True
    assert report["grid"] == {"lengths": [700, 1400], "depths": [0, 30, 100], "rounds": 2}
    assert report["config"]["haystack"] == "prose.txt"
    assert set(report["versions"]) == {"lwm", "jax"}
    assert (report["axes"], report["chance"]) == (["context_length", "depth_percent"], 0)
    assert report["cells"][0] == {
        "context_length": 700,
        "depth_percent": 0,
        "asked": 2,
        "score": 1,
        "interval95": [0.34238, 1],
        "correct": 2,
        "accuracy": 1,
        "wilson95": [0.34238, 1],
    }
    assert str(tmp_path) not in json.dumps(report)
