"""Answers of one model on the devices of two processes, and their end where one of them dies."""

import json
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lwm

SCRIPT = Path(__file__).with_name("answering_run.py")


def start(out, *options):
    """Starts both processes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, SCRIPT, coordinator, str(index), out, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


@pytest.mark.slow
@pytest.mark.representative
def test_two_processes_answer_as_one(tmp_path):
    running = start(tmp_path / "out.json")
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    same, logprobs = runpy.run_path(str(SCRIPT))["answer"](lwm.load("tiny-vision"))
    found, found_logprobs = json.loads((tmp_path / "out.json").read_text())
    assert found == same
    # On a mesh, sums have another order.
    assert found_logprobs == pytest.approx(logprobs, abs=1e-5)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_with_one_line(tmp_path):
    """Amid an answer; the other one waits in a collective, or for a call."""
    for dead in range(2):
        running = start(out := tmp_path / f"{dead}.json", "forever")
        while not out.exists():
            assert all(process.poll() is None for process in running)
            time.sleep(0.2)
        running[dead].send_signal(signal.SIGKILL)
        running[dead].communicate()
        _, said = running[1 - dead].communicate(timeout=30)
        assert running[1 - dead].returncode == 1
        assert said.splitlines()[-1:] == [f"lwm: process {dead} has ended; see its messages"]
        assert "Traceback" not in said
