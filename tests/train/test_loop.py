"""Runs that are killed, stopped or damaged end as those that were not, bit for bit."""

import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lwm.errors import UserError
from lwm.train.config import Training
from lwm.train.loop import Stopped

SCRIPT = Path(__file__).parents[1] / "training_run.py"
STEPS = 40
main = runpy.run_path(str(SCRIPT))["main"]


class Noting:
    """Keeps what a run reports, and asks this process to stop after some step."""

    def __init__(self, stop_at=None):
        self.stop_at, self.losses, self.warnings = stop_at, [], []

    def begin(self, last):
        pass

    def busy(self, text):
        pass

    def __call__(self, line):
        self.losses.append(line["loss"])
        if line["step"] == self.stop_at:
            signal.raise_signal(signal.SIGTERM)

    def warn(self, text):
        self.warnings.append(text)


def finish(folder, mesh="1,1,1,1"):
    main(folder, STEPS, mesh, sink := Noting())
    return sink


def stop(folder, step):
    """Asks a run to stop once a step has been made."""
    with pytest.raises(Stopped, match="run the same again to go on"):
        main(folder, STEPS, sink=Noting(stop_at=step))


def start(folder, *more, steps=STEPS):
    """Starts the same in a process of its own."""
    return subprocess.Popen(
        [sys.executable, SCRIPT, folder, str(steps), *map(str, more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
    losses = finish(folder).losses
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    return folder


def kill(folder, step):
    """Kills a process once it has made a step."""
    run = start(folder)
    assert run.stdout is not None
    for line in run.stdout:
        if int(line.split()[0]) >= step:
            break
    run.kill()
    run.communicate(timeout=300)
    assert run.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("times", [pytest.param(2, marks=pytest.mark.representative), 10])
def test_killed(whole, times):
    folder = whole.parent / f"killed {times} times"
    draw = random.Random(0)
    reached = 0
    for _ in range(times):
        furthest = 2 * (STEPS - 2) // times
        kill(folder, min(STEPS - 1, reached + draw.randint(1, furthest)))
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        reached = lines[-1]["step"] // 4 * 4
    run = start(folder)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    same(final(folder), final(whole))
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.representative
def test_stopped_and_damaged(whole):
    """SIGTERM saves and says how to go on; a checkpoint that is cut off is passed over."""
    folder = whole.parent / "stopped"
    stop(folder, 21)
    newest = max((folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    assert any(f"checkpoint {newest.name}" in text for text in finish(folder).warnings)
    same(final(folder), final(whole))


def alike(one, other):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * max(1e-3, np.abs(y).max()))


@pytest.mark.slow
@pytest.mark.representative
def test_on_another_mesh_the_numbers_are_the_same(whole):
    folder = whole.parent / "mesh"
    stop(folder, 10)
    finish(folder, "1,1,2,2")
    alike(final(folder), final(whole))


def together(folder, mesh, count, steps=STEPS):
    """Starts the same in so many processes that hold a mesh together."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    return [start(folder, mesh, coordinator, count, index, steps=steps) for index in range(count)]


def ends(runs):
    """Status and both outputs of each."""
    found = [run.communicate(timeout=300) for run in runs]
    return [(run.returncode, *texts) for run, texts in zip(runs, found, strict=True)]


def reaches(run, step):
    """Waits until a process has made a step."""
    assert run.stdout is not None
    return next((line for line in run.stdout if line.startswith(f"{step} ")), None)


@pytest.mark.slow
@pytest.mark.representative
def test_two_processes_train_together_and_one_goes_on(whole):
    """One of them is asked to stop; both do, and their checkpoint is as good as any."""
    folder = whole.parent / "processes"
    runs = together(folder, "1,4,1,1", 2)
    assert reaches(runs[0], 7)
    runs[1].send_signal(signal.SIGTERM)
    found = ends(runs)
    assert [code for code, *_ in found] == [0, 0], found
    assert all("run the same again to go on" in out for _, out, _ in found)
    assert log(folder)[:7] == pytest.approx(log(whole)[:7], rel=1e-5)
    assert len(log(folder)) >= 7
    finish(folder)
    assert log(folder) == pytest.approx(log(whole), rel=1e-4)
    alike(final(folder), final(whole))


@pytest.mark.slow
@pytest.mark.representative
def test_four_processes_train_together(whole):
    folder = whole.parent / "four"
    found = ends(together(folder, "1,2,2,1", 4, steps=6))
    assert [code for code, *_ in found] == [0] * 4, found
    assert log(folder)[:5] == pytest.approx(log(whole)[:5], rel=1e-4)


@pytest.mark.slow
def test_one_of_four_processes_is_killed_and_all_go_on(whole):
    """The others end with a line that names it, and the same job started again ends the same."""
    undisturbed, folder = (whole.parent / name for name in ("four undisturbed", "four killed"))
    found = ends(together(undisturbed, "1,2,2,1", 4, steps=12))
    assert [code for code, *_ in found] == [0] * 4, found
    draw = random.Random()
    gone, step = draw.randrange(4), draw.randrange(2, 11)
    runs = together(folder, "1,2,2,1", 4, steps=12)
    assert reaches(runs[0], step)
    runs[gone].kill()
    begun = time.monotonic()
    others = ends([run for number, run in enumerate(runs) if number != gone])
    assert time.monotonic() - begun < 30  # the timeout of the processes
    for code, _, errors in others:
        assert code == 1, (gone, step)
        assert errors.splitlines()[-1] == f"lwm: process {gone} has ended; see its messages"
        assert "Traceback" not in errors
    runs[gone].communicate()
    found = ends(together(folder, "1,2,2,1", 4, steps=12))
    assert [code for code, *_ in found] == [0] * 4, found
    same(final(folder), final(undisturbed))


def log(folder):
    """The losses of a run."""
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
