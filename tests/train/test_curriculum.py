"""Curricula: several stages, each from the weights of the one before, in one command."""

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lwm.convert.open import find_files, open_model_files
from lwm.errors import UserError
from lwm.formats.run_folder import base_of_stage
from lwm.train import loop
from lwm.train.config import Curriculum
from lwm.train.curriculum import run_curriculum

replace = dataclasses.replace
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "curriculum_run.py"
curriculum = runpy.run_path(str(SCRIPT))["curriculum"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curricula") / "whole"
    model = run_curriculum(curriculum(), folder, evaluations={"count": count})
    assert model == folder / "03-long" / "model"
    counted = folder / "02-again" / "evaluations" / "count"
    assert counted.read_text() == "once"
    run_curriculum(curriculum(), folder, evaluations={"count": count})
    assert counted.read_text() == "once"
    return folder


def count(model, out):
    """Stands for an evaluation: notes each call for a model that is there."""
    assert (model / "config.json").exists()
    out.parent.mkdir(exist_ok=True)
    with out.open("a") as file:
        file.write("once")


def test_each_stage_starts_from_the_weights_of_the_one_before(whole):
    theirs = [first_loss(whole / name) for name in ("01-first", "02-again", "03-long")]
    assert theirs[1] < theirs[0] - 0.3
    assert theirs[2] < theirs[0] - 0.3
    run = json.loads((whole / "02-again" / "run.json").read_text())
    assert run["init"] == "stage:first"
    config = open_model_files(whole / "03-long" / "model").config
    assert (config.max_context, config.rope.theta) == (128, 1e4)
    before = open_model_files(whole / "02-again" / "model").config
    assert before.max_context == 64


def first_loss(folder):
    return json.loads((folder / "log.jsonl").read_text().splitlines()[0])["loss"]


def weights(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.slow
def test_killed_in_each_stage_and_between_them(whole, tmp_path):
    folder = tmp_path / "killed"
    for place in ("first@1", "first@4", "first", "again@1", "again", "long@3", "long"):
        assert run(folder, place).returncode == -signal.SIGKILL
    assert run(folder).returncode == 0
    same_weights(folder, whole)


def test_a_curriculum_that_stops_goes_on_in_its_stage(whole, tmp_path, monkeypatch):
    write = loop.Log.write

    def fails(log, line):
        write(log, line)
        if log._path.parent.name == "02-again" and line["step"] == 3:
            raise UserError("the disk is full")

    monkeypatch.setattr(loop.Log, "write", fails)
    with pytest.raises(UserError, match="the disk is full"):
        run_curriculum(curriculum(), tmp_path, evaluations={"count": count})
    finished = json.loads((tmp_path / "curriculum.json").read_text())["finished"]
    assert finished == {"first": []}
    monkeypatch.undo()
    run_curriculum(curriculum(), tmp_path, evaluations={"count": count})
    same_weights(tmp_path, whole)


def same_weights(folder, whole):
    theirs = weights(whole / "03-long" / "model")
    assert theirs
    assert weights(folder / "03-long" / "model") == theirs


def run(folder, *where):
    command = [sys.executable, str(SCRIPT), str(folder), *where]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, timeout=300)


def test_the_folder_stands_for_the_last_stage_that_is_finished(whole, tmp_path):
    assert find_files(whole) == whole / "03-long" / "model"
    (tmp_path / "curriculum.json").write_text(json.dumps({"version": 1, "finished": {}}))
    with pytest.raises(UserError, match="has no finished stage"):
        find_files(tmp_path)


def test_other_settings_of_a_finished_stage_are_refused(whole):
    stages = curriculum().stages
    other = replace(stages[0], run=replace(stages[0].run, seed=1))
    with pytest.raises(UserError, match="01-first holds another run: seed was 0 and is 1"):
        run_curriculum(Curriculum(stages=(other, *stages[1:])), whole, evaluations={"count": count})


def test_more_steps_or_another_shape_of_a_finished_stage_are_refused(whole):
    first, *others = curriculum().stages
    more = replace(first.run, training=replace(first.run.training, steps=9))
    wider = replace(first.run, model=replace(first.run.model, mlp_dim=8))
    for changed, said in (
        (more, r"training.steps was 4 and is 9 \(it is finished\)"),
        (wider, "01-first holds another run: model.mlp_dim was .* and is 8"),
    ):
        stages = replace(first, run=changed), *others
        with pytest.raises(UserError, match=said):
            run_curriculum(Curriculum(stages=stages), whole, evaluations={"count": count})
    with pytest.raises(UserError, match=r"stage first is finished, but .*run\.json is missing"):
        run_curriculum(
            Curriculum(stages=(replace(first, name="new"), replace(others[0], name="first"))),
            whole,
            evaluations={"count": count},
        )


def test_mistakes_in_a_later_stage_show_before_the_first(tmp_path):
    first, again, long = curriculum().stages
    narrow = replace(again.run, context=32)
    hasty = replace(again.run, training=replace(again.run.training, steps=1))
    for changed, said in (
        (narrow, "stage again: rows of 64 tokens exceed --context 32"),
        (hasty, "stage again: a warm-up of .* do not fit into 1 steps"),
    ):
        stages = first, replace(again, run=changed), long
        with pytest.raises(UserError, match=said):
            run_curriculum(
                Curriculum(stages=stages), tmp_path / "new", evaluations={"count": count}
            )
    assert not (tmp_path / "new").exists()


def test_the_model_that_a_stage_starts_from(tmp_path):
    stage = tmp_path / "02-again"
    assert base_of_stage(stage, "stage:first") == tmp_path / "01-first" / "model"
    assert base_of_stage(stage, "some/model") == "some/model"
    with pytest.raises(UserError, match="its name has lost its number"):
        base_of_stage(tmp_path / "again", "stage:first")


def test_stages_that_cannot_follow_each_other():
    first, again, long = curriculum().stages
    for stages, said in (
        ((), "at least one stage"),
        ((first, replace(again, name="first")), "two stages are called 'first'"),
        ((replace(first, name="a/b"),), "'a/b' would name a folder"),
        (
            (first, replace(again, run=replace(again.run, init="7b"))),
            "starts from the stage before",
        ),
    ):
        with pytest.raises(UserError, match=said):
            Curriculum(stages=stages)
    with pytest.raises(UserError, match="no evaluation is called 'count'; there are none"):
        run_curriculum(Curriculum(stages=(first, again, long)), Path("nowhere"))


def test_evaluations_are_refused_where_several_processes_train(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(UserError, match="stage again: evaluations run in one process"):
        run_curriculum(curriculum(), tmp_path / "new", evaluations={"count": count})
    assert not (tmp_path / "new").exists()
