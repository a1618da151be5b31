"""Models on workers of Ray answer as a model in this process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lwm.cli.answerers import AnswerOptions, open_subject
from lwm.cli.common import LoadOptions
from lwm.convert.export import save_model
from lwm.errors import UserError
from lwm.eval.subject import Subject
from lwm.loading import load

from .ray_run import asked

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Runs in a process of its own, as Ray has warnings of its own and leaves files open."""
    return subprocess.run(
        [sys.executable, "-m", "tests.eval.ray_run", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"},
    )


@pytest.mark.slow
def test_workers_answer_as_this_process_also_if_one_dies(tiny_model, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    folder = tmp_path / "model"
    save_model(tiny_model.llama, tiny_model.tokenizer, folder)
    there = run(str(folder), "16")
    assert there.returncode == 0, there.stderr
    refused, answered = there.stdout.splitlines()
    assert refused.startswith("mesh 'tp=64'")
    here = asked(Subject.of_model(load(str(folder)), rows=2), 16)
    assert json.loads(answered) == here
    assert len(here["found"]) == 16


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UserError, match=r"^--engine ray needs ray: pip install 'lwm\[ray\]'$"),
        open_subject("model", LoadOptions(), AnswerOptions(engine="ray")),
    ):
        pass
