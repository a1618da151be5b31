"""Runs that are killed, stopped or damaged end as those that were not, bit for bit."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lwm.errors import UserError
from lwm.train.config import Training

SCRIPT = Path(__file__).parents[1] / "training_run.py"


def start(folder, *more):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    return subprocess.Popen(
        [sys.executable, SCRIPT, folder, "60", *map(str, more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | cache | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    )


def finish(folder, *more):
    run = start(folder, *more)
    out, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    return out, errors


def interrupt(folder, step, how):
    """Sends a signal once a step has been made; returns what the run said, and how it ended."""
    run = start(folder)
    assert run.stdout is not None
    for line in run.stdout:
        if int(line.split()[0]) >= step:
            break
    run.send_signal(how)
    out, _ = run.communicate(timeout=300)
    return out, run.returncode


def final(folder):
    with np.load(folder / "final.npz") as file:
        return [file[name] for name in file.files]


def same(one, other):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_run_without_steps_is_refused():
    with pytest.raises(UserError, match="0 steps of 1 batches"):
        Training(steps=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    out, _ = finish(folder)
    losses = [float(line.split()[1]) for line in out.splitlines()]
    assert len(losses) == 60
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    return folder


def kill(whole, times):
    folder = whole.parent / f"killed {times} times"
    draw = random.Random(0)
    reached = 0
    for _ in range(times):
        step = min(59, reached + draw.randint(1, max(1, 2 * 58 // times)))
        _, code = interrupt(folder, step, signal.SIGKILL)
        assert code == -signal.SIGKILL
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        reached = log[-1]["step"] // 4 * 4
    finish(folder)
    same(final(folder), final(whole))
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))


def test_killed_twice(whole):
    kill(whole, 2)


@pytest.mark.slow
def test_killed_ten_times(whole):
    kill(whole, 10)


def test_stopped_and_damaged(whole):
    """SIGTERM saves and says how to go on; a checkpoint that is cut off is passed over."""
    folder = whole.parent / "stopped"
    out, code = interrupt(folder, 21, signal.SIGTERM)
    assert code == 0
    assert "run the same again to go on" in out
    newest = max((folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    _, errors = finish(folder)
    assert f"checkpoint {newest.name}" in errors
    same(final(folder), final(whole))


def alike(one, other):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * max(1e-3, np.abs(y).max()))


def test_on_another_mesh_the_numbers_are_the_same(whole):
    folder = whole.parent / "mesh"
    interrupt(folder, 10, signal.SIGTERM)
    finish(folder, "1,1,2,2")
    alike(final(folder), final(whole))


def test_two_processes_train_together_and_one_goes_on(whole):
    """One of them is told to stop; both do, and their checkpoint is as good as any."""
    folder = whole.parent / "processes"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    runs = [start(folder, "1,4,1,1", coordinator, 2, index) for index in range(2)]
    assert runs[0].stdout is not None
    next(line for line in runs[0].stdout if line.startswith("7 "))
    runs[1].send_signal(signal.SIGTERM)
    ends = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], ends
    assert all("run the same again to go on" in out for out, _ in ends)
    assert log(folder)[:7] == pytest.approx(log(whole)[:7], rel=1e-5)
    assert len(log(folder)) >= 7
    finish(folder)
    assert log(folder) == pytest.approx(log(whole), rel=1e-4)
    alike(final(folder), final(whole))


def log(folder):
    """The losses of a run."""
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
