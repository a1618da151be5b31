"""Whole runs, from files to a model that answers."""

import dataclasses
import json
import math
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lwm
from lwm.cli.data import data_tokenize
from lwm.convert.card import is_written
from lwm.convert.convert import convert_model
from lwm.convert.open import open_model_files, open_tokenizer, open_tokens, read_llama
from lwm.data.pack import PackingConfig
from lwm.data.shards import open_shards
from lwm.errors import UserError
from lwm.fingerprint import fingerprints, model_files, named
from lwm.formats.run_facts import read_lineage
from lwm.model.config import ModelOverrides, Rope, read_scaling
from lwm.recipes import debug
from lwm.train import run as runs, task
from lwm.train.config import AdamW, DataSet, Loss, Schedule
from lwm.train.run_json import require_finite

replace = dataclasses.replace


SCRIPT = Path(__file__).parents[1] / "small_run.py"
small = runpy.run_path(str(SCRIPT))["small"]


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert runs.run(small(), folder, track=("tensorboard",), profile=1) == folder / "model"
    return folder


def test_a_run_leaves_all_that_it_should(whole):
    lines = log(whole)
    updates = [line for line in lines if "loss" in line]
    assert [line["step"] for line in updates] == [1, 2, 3, 4, 5, 6]
    assert updates[-1]["loss"] < updates[0]["loss"]
    assert updates[1]["learning_rate"] == pytest.approx(5e-3)
    assert not any("vision_loss" in line for line in updates)
    for line in updates:
        assert 0.9 < line["packing"] <= 1
        assert line["tokens"] <= line["slots"] == 4 * 64
        assert 0 < line["pairs"] <= 4 * 64 * 65 / 2
        assert line["memory"] > 1e6
    held_out = [line for line in lines if "held_out" in line]
    assert [line["step"] for line in held_out] == [3, 6]
    assert held_out[1]["held_out"]["chapter 3"]["by_position"][-1][:2] == [32, 64]
    assert json.loads((whole / "run.json").read_text())["training"]["steps"] == 6
    assert list((whole / "tensorboard").glob("events*"))
    assert list((whole / "profile").rglob("*.xplane.pb"))


def test_the_model_answers(whole):
    model = lwm.load(whole / "model")
    assert model.llama.config.max_context == 256
    assert isinstance(model.generate("Call me", max_tokens=4), str)
    assert model.tokenizer.decode(model.tokenizer.encode("Whale ½ 🐳")) == "Whale ½ 🐳"


def test_a_finished_run_only_saves_again(whole, capfd):
    before = (whole / "log.jsonl").read_text()
    runs.run(small(), whole)
    assert (whole / "log.jsonl").read_text() == before
    with pytest.raises(UserError, match="holds another run: data"):
        runs.run(replace(small(), data=replace(small().data, rows=2)), whole)


def test_a_model_of_chats_says_their_format_and_one_of_texts_none(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ishmael."}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}))
    run = small(steps=2, optimizer=AdamW(schedule=Schedule(warmup=0)), validate_every=0)
    chats = DataSet(
        files=("chats.jsonl",), format=replace(DataSet(files=()).format, template="lwm")
    )
    data = replace(run.data, sets=(chats,), held_out=())
    run = replace(run, model=None, init=str(whole / "model"), data=data)
    model = runs.run(run, tmp_path / "run")
    assert open_tokenizer(model).chat_template == "lwm"
    assert open_tokenizer(whole / "model").chat_template is None


def test_training_goes_on_from_a_model_with_vision_added(whole, tmp_path, monkeypatch):
    """Shards of tokens are read, the tokenizer comes with the model, and codes get rows."""
    lines = [{"fields": "[a],vision", "a": f"picture {n}", "vision": [n % 7] * 8} for n in range(8)]
    (tmp_path / "pictures.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.chdir(tmp_path)
    text = ("shipped:moby-dick/*.txt",)
    options = {"max_bad_share": 0.0, "workers": 0, "format": debug().data.sets[0].format}
    out = tmp_path / "shards"
    data_tokenize(text, out=out, tokenizer=whole / "model", codes=0, shards=1, **options)
    run = small(steps=2, optimizer=AdamW(schedule=Schedule(warmup=0)), validate_every=0)
    pictures = DataSet(
        files=("pictures.jsonl",),
        name="pictures",
        format=replace(DataSet(files=()).format, tokens_per_frame=4),
    )
    sets = (DataSet(files=(str(out),), weight=0.5), pictures)
    data = replace(run.data, sets=sets, held_out=(pictures,), codes=10)
    theirs = {"theta": 2e4, "context": 300, "rope_scaling": "llama3:2,1,4,64"}
    run = replace(run, model=None, init=f"{whole}@6", data=data, **theirs)
    folder = tmp_path / "run"
    (licence := whole / "model" / "LICENSE.txt").write_text("as you like")
    model = runs.run(run, folder)
    licence.unlink()
    (held_out,) = [line["held_out"] for line in log(folder) if "held_out" in line]
    assert held_out["pictures"]["vision_loss"] == pytest.approx(np.log(12), rel=0.2)
    config = open_model_files(model).config
    before = open_model_files(whole / "model").config
    assert (config.tokens.text, config.tokens.vision, config.tokens.codes) == (
        before.tokens.text,
        12,
        10,
    )
    # Every record of the run says what was trained.
    settings = json.loads((folder / "run.json").read_text())["model"]
    assert settings == json.loads(json.dumps(dataclasses.asdict(config)))
    assert (config.rope.theta, config.max_context) == (2e4, 300)
    assert config.rope.scaling == read_scaling(theirs["rope_scaling"])
    assert (config.dim, config.num_layers) == (before.dim, before.num_layers)
    assert open_model_files(f"{folder}@2").tokenizer.vocab_size == before.tokens.text
    assert open_tokenizer(f"{folder}@2").vocab_size == before.tokens.text
    opened = lwm.load(model)
    assert opened.tokenizer.chat_template == "lwm", "so that other programs ask as `lwm chat`"
    assert jnp.isfinite(opened.llama.embedding).all()
    assert len(open_shards(out, tokens=config.tokens, tokenizer=opened.tokenizer)) == 3
    # The run that it began with is in its card, and the licence beside.
    assert (model / "LICENSE.txt").read_text() == "as you like"
    assert "See LICENSE.txt beside this card." in (model / "README.md").read_text()
    assert "| whole | 6 | 1,536 | 64 | 10000 |" in (model / "README.md").read_text()
    lineage = read_lineage(folder)
    assert lineage is not None
    assert [stage.name for stage in lineage.stages] == ["whole"]


def test_a_run_and_its_checkpoints_are_models(whole, tmp_path):
    weights = {
        name: jax.tree.leaves(lwm.load(path).llama)
        for name, path in {
            "model": whole / "model",
            "run": whole,
            "last": f"{whole}@6",
            "early": f"{whole}@3",
            "path": whole / "checkpoints" / "3",
        }.items()
    }

    def are_equal(one, other):
        pairs = zip(weights[one], weights[other], strict=True)
        return all((jnp.asarray(x) == jnp.asarray(y)).all() for x, y in pairs)

    for pair in (("run", "model"), ("last", "model"), ("early", "path")):
        assert are_equal(*pair)
    assert not are_equal("early", "last")
    model = lwm.load(f"{whole}@3", given=ModelOverrides(theta=5e3, context=128))
    assert (model.llama.config.rope.theta, model.context) == (5e3, 128)
    text = "Whale ½ 🐳"
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    convert_model(open_model_files(f"{whole}@3"), tmp_path / "converted", dtype=None)
    card = (tmp_path / "converted" / "README.md").read_text()
    assert "# whole, step 3" in card
    assert "| steps | 3 of 6 |" in card
    assert "| tokens seen | 768 tokens, padding not counted |" in card
    weights["early"] = jax.tree.leaves(lwm.load(tmp_path / "converted").llama)
    assert are_equal("early", "path")
    tokens = open_tokens(f"{whole}@3")[1]
    assert tokens == open_tokens(whole / "model")[1]
    with pytest.raises(UserError, match="has no checkpoint of step 4; there are 3, 6"):
        lwm.load(f"{whole}@4")
    with pytest.raises(UserError, match="does not exist"):
        lwm.load(f"{tmp_path}@4")


def test_a_stopped_run_is_its_newest_checkpoint_and_a_damaged_one_is_named(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "6")
    assert open_model_files(folder).source == folder / "checkpoints" / "3"
    file = max((folder / "checkpoints" / "3" / "state").rglob("*"), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"checkpoints/3 is damaged: .* bytes in place of"):
        lwm.load(folder)
    settings = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(settings | {"version": 2}))
    with pytest.raises(UserError, match="an earlier version, without the model that was trained"):
        open_model_files(f"{folder}@3")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        open_model_files(folder)


def test_a_recipe_of_another_shape_than_its_init_is_refused(whole, tmp_path):
    run = replace(small(), init=str(whole / "model"))
    for changes, said in (
        ({"rope": Rope(theta=1e6)}, "rope .*theta=1000000.0.*, but init .*; leave the model out"),
        ({"max_context": 1024}, "max_context 1024, but init .* has 256"),
        ({"num_layers": 2}, "num_layers 2, but init .* has 1"),
    ):
        other = replace(run, model=replace(run.model, **changes))
        with pytest.raises(UserError, match=said):
            runs.run(other, tmp_path / "run")
    with pytest.raises(UserError, match="rows of 64 tokens exceed --context 32"):
        runs.run(replace(run, model=None, context=32), tmp_path / "run")
    with pytest.raises(UserError, match="--config and --codes are of a model to start from"):
        runs.run(replace(small(), config="7b"), tmp_path / "run")
    with pytest.raises(UserError, match="the run has no model"):
        runs.run(replace(small(), model=None), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nor a tokenizer in it


def test_mistakes_are_told_before_anything_runs(whole, tmp_path):
    run, folder = small(), tmp_path / "run"
    data = run.data
    long = replace(data, rows=3)
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        runs.run(run, folder)
    shutil.rmtree(folder)
    for changed, said in (
        (replace(run, mesh="4,1,1,1", data=long), "3 rows of the batch do not divide by dp 4"),
        (replace(run, mesh="1,1,8,1"), "4 attention heads do not divide by tp 8"),
        (small(steps=2), "warm-up of 2 steps and a decay of 0 do not fit into 2 steps"),
        (
            replace(run, mesh="1,1,1,4", data=replace(data, packing=PackingConfig(length=66))),
            "66 tokens of a row do not divide by sp 4",
        ),
        (replace(run, data=replace(data, vocabulary=0)), "give a tokenizer: init, data.tokenizer"),
        (replace(run, data=replace(data, vocabulary=99)), "vocabulary of 99 has no room"),
        (replace(run, init=str(tmp_path / "none")), "none does not exist"),
        (replace(run, data=replace(data, sets=(DataSet(files=("books:all",)),))), "books:train"),
        (replace(run, data=replace(data, sets=(DataSet(files=("no/file",)),))), "does not exist"),
        (
            replace(
                run, init=str(whole / "model"), data=replace(data, tokenizer=str(whole / "model"))
            ),
            "is given beside init",
        ),
    ):
        with pytest.raises(UserError, match=said):
            runs.run(changed, folder)
        assert not (folder / "run.json").exists()


def test_two_runs_in_one_folder_do_not_disturb_each_other(whole, tmp_path, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    seen = []

    def meanwhile(*_, **__):
        with pytest.raises(UserError, match="run is being written by another process; wait for it"):
            runs.run(small(), folder)
        seen.append(folder)
        raise UserError("the first run ends here")

    monkeypatch.setattr(runs, "_open", meanwhile)
    with pytest.raises(UserError, match="ends here"):
        runs.run(small(), folder)
    assert seen
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("training.optimizer.schedule.peak is nan", {"schedule": Schedule(peak=math.nan)}),
        ("training.optimizer.b2 is nan", {"b2": math.nan}),
        ("training.optimizer.clip is nan", {"clip": math.nan}),
        ("training.optimizer.weight_decay is inf", {"weight_decay": math.inf}),
    ],
)
def test_settings_that_are_not_finite_are_refused_by_name(tmp_path, name, changed):
    with pytest.raises(UserError, match=name):
        runs.run(small(optimizer=AdamW(**changed)), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_weights_of_sets_and_losses_are_finite_and_a_clip_need_not_be():
    run = small(optimizer=AdamW(clip=math.inf))
    require_finite(run)
    wrong = replace(run, data=replace(run.data, sets=(DataSet(files=("a",), weight=math.inf),)))
    with pytest.raises(UserError, match=r"data\.sets\.0\.weight is inf; give a finite number"):
        require_finite(wrong)
    with pytest.raises(UserError, match=r"training\.loss\.z is nan"):
        require_finite(small(loss=Loss(z=math.nan)))


def two_processes(folder, mesh, vocabulary=300):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    given = [str(folder), mesh, str(vocabulary), coordinator, "2"]
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *given, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    return [(run.communicate(timeout=300), run.returncode) for run in running]


@pytest.mark.slow
@pytest.mark.representative
def test_two_processes_make_the_same_model(whole, tmp_path):
    """One of them trains the tokenizer and writes; the held-out sets are scored by both."""
    ends = two_processes(tmp_path / "run", "1,2,1,2")
    assert [code for _, code in ends] == [0, 0], ends
    for line, want in zip(log(tmp_path / "run"), log(whole), strict=True):
        if "loss" in want:
            assert line["loss"] == pytest.approx(want["loss"], rel=1e-4)
            for name in ("tokens", "slots", "pairs"):
                assert line[name] == want[name]
        else:
            found, want = (each["held_out"]["chapter 3"] for each in (line, want))
            assert found["text_loss"] == pytest.approx(want["text_loss"], rel=1e-4)
    one, other = (lwm.load(folder / "model").llama for folder in (tmp_path / "run", whole))
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert jnp.abs(x - y).max() <= 1e-3 * jnp.abs(y).max()


def test_where_one_process_fails_none_waits(tmp_path):
    begun = time.monotonic()
    (first, *_), (second, *_) = two_processes(tmp_path / "run", "1,4,1,1", vocabulary=99)
    assert "refused: a vocabulary of 99 has no room" in first[0]
    assert "refused: process 0 has failed; see its message" in second[0]
    assert time.monotonic() - begun < 120  # not the minutes after which JAX gives up
    assert not (tmp_path / "run" / "run.json").exists()


class Begun(Exception):
    """Raised where a run would train."""


KILLED, STOPPED = "has ended; see its messages", "has not answered for 20 s"


@pytest.mark.slow
@pytest.mark.representative
def test_where_process_0_is_killed_the_other_ends_in_a_line(tmp_path):
    ends_in_a_line(tmp_path, 0, signal.SIGKILL, KILLED)


@pytest.mark.slow
def test_where_a_process_is_killed_or_stopped_the_other_ends_in_a_line(tmp_path):
    ends_in_a_line(tmp_path / "killed", 1, signal.SIGKILL, KILLED)
    for gone in (0, 1):
        ends_in_a_line(tmp_path / f"stopped {gone}", gone, signal.SIGSTOP, STOPPED)


def ends_in_a_line(tmp_path, gone, number, said):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    code = "import sys; from lwm.cli.app import main; sys.argv[0] = 'lwm'; main()"
    given = ["train", f"{SCRIPT}:small", "--out", str(tmp_path / "run"), "--mesh", "1,2,1,1"]
    given += ["--training.steps", "100000", "--processes.coordinator", coordinator]
    given += ["--processes.count", "2", "--processes.timeout", "20", "--processes.index"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, *given, str(index)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(2)
    ]
    written = tmp_path / "run" / "log.jsonl"
    while not (written.exists() and written.read_bytes().count(b"\n") > 1):
        assert all(process.poll() is None for process in running)
        time.sleep(0.1)
    running[gone].send_signal(number)
    _, errors = running[1 - gone].communicate(timeout=60)
    running[gone].kill()
    running[gone].communicate()
    assert running[1 - gone].returncode == 1
    assert errors.splitlines()[-1] == f"lwm: process {gone} {said}"
    assert "Traceback" not in errors


@pytest.fixture
def begin(monkeypatch):
    """Runs up to the first update."""

    def stop(*_, **__):
        raise Begun

    monkeypatch.setattr(runs, "train", stop)

    def begin(run, folder):
        with pytest.raises(Begun):
            runs.run(run, folder)

    return begin


def test_other_text_on_as_many_lines_is_refused(tmp_path, begin):
    text = tmp_path / "a.jsonl"
    text.write_text("".join(f'{{"text": "Call me Ishmael {n:03}."}}\n' for n in range(99)))
    recipe, folder = small(), tmp_path / "run"
    files = DataSet(files=(str(text),))
    recipe = replace(recipe, data=replace(recipe.data, sets=(files,), held_out=(), vocabulary=280))
    begin(recipe, folder)
    begin(recipe, folder)
    before = text.read_text()
    text.write_text(before.replace("050", "051"))
    with pytest.raises(UserError, match=r"/a\.jsonl has changed since the start; restore it"):
        runs.run(recipe, folder)
    text.write_text(before)
    (folder / "inputs.json").unlink()
    begin(recipe, folder)
    assert "data.sets.0/a.jsonl" in (folder / "inputs.json").read_text()
    tokenizer = folder / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(UserError, match=r"/tokenizer/tokenizer_config\.json has changed since"):
        runs.run(recipe, folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_another_model_at_the_path_of_init_is_refused(whole, tmp_path, begin, name):
    model = shutil.copytree(whole / "model", tmp_path / "model")
    recipe = replace(small(), init=str(model))
    begin(recipe, tmp_path / "run")
    content = (model / name).read_bytes()
    changed = (
        content[:-1] + bytes([content[-1] ^ 1]) if name == "model.safetensors" else content + b"\n"
    )
    (model / name).write_bytes(changed)
    with pytest.raises(UserError, match=rf"/model/{name} has changed since the start"):
        runs.run(recipe, tmp_path / "run")


def test_checkpoints_without_their_settings_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints but no run\.json with their settings"):
        runs.run(small(optimizer=AdamW(schedule=Schedule(peak=1e-3, warmup=2))), tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_a_model_of_another_run_is_not_replaced(whole, tmp_path, begin):
    folder = tmp_path / "run"
    shutil.copytree(whole / "model", folder / "model")
    with pytest.raises(UserError, match=r"run/model holds a model of another run, .*--out"):
        begin(small(), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["model"]


def test_what_was_written_about_a_model_stays_with_it(whole):
    note = whole / "model" / "README.md"
    card = note.read_text()
    assert "| tokens seen | 1,536 tokens, padding not counted |" in card
    assert "validation of the run at step 6, 256 tokens |" in card
    note.unlink()
    runs.run(small(), whole)
    assert note.read_text() == card
    # An evaluation in the run's folder is added, if it is of these weights.
    opened = open_model_files(whole / "model")
    report = {
        "evaluation": "needle",
        "command": "lwm eval needle whole",
        "model": {"config": dataclasses.asdict(opened.config)},
        "config": {"needles": 1, "ask": 1},
        "files": fingerprints(named(model_files(opened.source))),
        "overall": {"asked": 4, "score": 0.5},
        "by_length": [{"context_length": 64}],
    }
    (whole / "eval").mkdir()
    (whole / "eval" / "report.json").write_text(json.dumps(report))
    runs.run(small(), whole)
    row = "| one needle, 64 tokens | 50.0%; n = 4 | lwm eval needle whole |\n"
    assert row in note.read_text()
    assert is_written(note.read_text())
    note.write_text("# Mine\n")
    runs.run(small(), whole)
    assert note.read_text() == "# Mine\n"


def test_updates_that_are_not_finite_name_their_examples(tmp_path, monkeypatch, whole):
    """After three in a row the run ends."""

    def broken(*given, **options):
        model = read_llama(*given, **options)
        return replace(model, embedding=model.embedding * jnp.nan)

    monkeypatch.setattr(task, "read_llama", broken)
    run = replace(small(), init=str(whole / "model"))
    said = "the updates of steps 1 to 3 are not finite; in .*run no checkpoint was made before"
    with pytest.raises(UserError, match=said):
        runs.run(run, tmp_path / "run")
    lines = log(tmp_path / "run")
    assert [line["finite"] for line in lines] == [False] * 3
    assert all("chapter-" in name for line in lines for name in line["examples"])
