"""The needle test of a served model, by the command and by failing servers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lwm.cli.app import main
from lwm.errors import UserError
from lwm.eval.endpoint import ServedModel, endpoint_subject
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.run import REPORT, RESULTS, evaluate
from lwm.eval.server import Server

from .endpoint_server import FAULTS, serving

GRID = NeedleConfig(lengths=(700, 1000), depths=(0.0, 50.0, 100.0), rounds=2, max_tokens=40)
OPTIONS = ["--lengths", "700", "1000", "--depths", "0", "50", "100"]
OPTIONS += ["--rounds", "2", "--max-tokens", "40"]
CELLS = 12


@pytest.fixture
def fake(monkeypatch, find_numbers):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(find_numbers) as server:
        server.key = "sk-secret"
        yield server


@pytest.fixture
def tokenizer_folder(byte_tokenizer, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    byte_tokenizer.save(folder)
    return folder


@pytest.fixture
def command(fake, tokenizer_folder):
    """Returns the arguments of the command that asks the server."""
    served = ["--endpoint", fake.url, "--tokenizer", str(tokenizer_folder)]
    return lambda out: ["lwm", "eval", "needle", *served, *OPTIONS, "--out", str(out)]


@pytest.fixture
def whole(command, monkeypatch, tmp_path, fake) -> Path:
    """The folder of an evaluation without failures."""
    monkeypatch.setattr(sys, "argv", command(tmp_path / "whole"))
    main()
    assert len(fake.asked) == CELLS
    fake.asked.clear()
    return tmp_path / "whole"


def rows(folder):
    """Returns the header, and the answers in any order."""
    header, *answers = (folder / RESULTS).read_bytes().splitlines()
    return header, sorted(answers)


def test_one_request_in_five_fails_and_the_report_is_the_same(
    whole, fake, byte_tokenizer, tmp_path
):
    report = json.loads((whole / REPORT).read_text())
    assert report["overall"]["accuracy"] == 1
    assert report["model"]["name"] == "oracle"
    fake.fault = lambda number: FAULTS[number // 5 % len(FAULTS)] if number % 5 == 2 else None
    server = Server(url=fake.url, key="sk-secret", pause=0.001, timeout=0.3, connections=3)
    subject = endpoint_subject(server, ServedModel.find(server), byte_tokenizer)
    evaluate(subject, GRID, tmp_path / "failing")
    assert len(fake.asked) == CELLS, "what was answered is not asked again"
    assert (tmp_path / "failing" / REPORT).read_bytes() == (whole / REPORT).read_bytes()
    assert rows(tmp_path / "failing") == rows(whole)
    for file in [*whole.iterdir(), *(tmp_path / "failing").iterdir()]:
        assert b"sk-secret" not in file.read_bytes()
        assert str(fake.url).encode() not in file.read_bytes()


def test_killed_while_it_waits_the_command_continues(
    whole, fake, command, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "killed"
    fake.fault = lambda number: "never" if len(fake.asked) >= 5 else None
    code = "from lwm.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command(out)[1:], "--concurrency", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(fake.asked) < 5 or (out / RESULTS).read_bytes().count(b"\n") < 6:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    fake.fault = lambda number: None
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", command(out))
    main()
    assert f"{CELLS - 5} of {CELLS} questions asked now" in capsys.readouterr().out
    assert len(fake.asked) == CELLS
    assert (out / REPORT).read_bytes() == (whole / REPORT).read_bytes()
    assert rows(out) == rows(whole)


def test_ctrl_c_stops_the_command_and_names_what_is_kept(fake, command, tmp_path):
    out = tmp_path / "stopped"
    fake.fault = lambda number: "never" if len(fake.asked) >= 4 else None
    code = "from lwm.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command(out)[1:], "--concurrency", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(fake.asked) < 4 or (out / RESULTS).read_bytes().count(b"\n") < 5:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"stopped with 4 of {CELLS} answers in {out / RESULTS}; run the same command" in shown


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "give the model, or --endpoint"),
        (["model", "--tokenizer", "t"], "--tokenizer is for --endpoint"),
        (["--endpoint", "localhost:8000"], "endpoint localhost:8000 is no URL of a server"),
        (["--endpoint", "http://h", "--engine", "ray"], "exclude each other"),
        (["--endpoint", "http://h", "--extra-body", "[]"], "--extra-body [] is no JSON object"),
        (["--endpoint", "http://h", "--concurrency", "0"], "concurrency 0 must be 1 or more"),
        (["--endpoint", "http://h", "--api-key-env", "UNSET_KEY"], "UNSET_KEY: this environment"),
        (["model", "--rows", "0"], "--rows 0 must be at least 1"),
        (["model", "--ray-resources", "GPU"], "--ray-resources GPU: give pairs"),
    ],
)
def test_options_that_do_not_go_together_are_refused_first(
    options, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["lwm", "eval", "needle", *options])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main()
    assert reason in capsys.readouterr().err
    assert os.listdir() == []


def test_a_tokenizer_that_is_not_found_leads_to_the_option(fake, monkeypatch, tmp_path, capsys):
    out = str(tmp_path / "o")
    monkeypatch.setattr(
        sys, "argv", ["lwm", "eval", "needle", "--endpoint", fake.url, "--out", out]
    )
    with pytest.raises(SystemExit):
        main()
    assert "--tokenizer names that of the served model, oracle" in capsys.readouterr().err


def test_a_length_above_the_context_of_the_server_is_refused(fake, byte_tokenizer, tmp_path):
    fake.models = [{"id": "oracle", "max_model_len": 800}]
    server = Server(url=fake.url, key="sk-secret")
    subject = endpoint_subject(server, ServedModel.find(server), byte_tokenizer)
    with pytest.raises(UserError, match="length 1,000 is above the context of oracle, 800 tokens"):
        evaluate(subject, GRID, tmp_path)
    assert fake.asked == []
