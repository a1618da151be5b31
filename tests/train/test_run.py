"""Whole runs, from files to a model that answers."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lwm
from lwm.data.pack import Packing
from lwm.data.shards import open_shards
from lwm.data.tokenize import run as tokenize
from lwm.data.tokenizer import Tokenizer
from lwm.errors import UserError
from lwm.loading import open_model_files
from lwm.recipes import debug
from lwm.train import run as runs
from lwm.train.config import AdamW, DataSet, Keep, Schedule

replace = dataclasses.replace


def small(**training):
    """The recipe `debug`, smaller."""
    run = debug()
    settings: dict[str, Any] = {
        "steps": 6,
        "optimizer": AdamW(schedule=Schedule(peak=1e-2, warmup=2)),
        "keep": Keep(every=3),
        "validate_every": 3,
    }
    data = replace(
        run.data,
        packing=Packing(length=64),
        rows=4,
        held_out_rows=4,
        vocabulary=300,
        threads=0,
    )
    model = replace(run.model, dim=32, head_dim=8, mlp_dim=64, num_layers=1)
    return replace(
        run, model=model, data=data, training=replace(run.training, **settings | training)
    )


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


def test_training_goes_on_from_a_model_with_vision_added(whole, tmp_path, monkeypatch):
    """Shards of tokens are read, the tokenizer comes with the model, and codes get rows."""
    lines = [{"fields": "[a],vision", "a": f"picture {n}", "vision": [n % 7] * 8} for n in range(8)]
    (tmp_path / "pictures.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.chdir(tmp_path)
    text = (str(debug().data.sets[0].files[0]).replace("chapter-[12].txt", ""),)
    options = {"max_bad_share": 0.0, "workers": 0, "format": debug().data.sets[0].format}
    out = tmp_path / "shards"
    tokenize(text, out=out, model=None, tokenizer=whole / "model", codes=0, shards=1, **options)
    run = small(steps=2, optimizer=AdamW(schedule=Schedule(warmup=0)), validate_every=0)
    pictures = DataSet(
        files=("pictures.jsonl",),
        name="pictures",
        format=replace(DataSet(files=()).format, tokens_per_frame=4),
    )
    sets = (DataSet(files=(str(out),), weight=0.5), pictures)
    data = replace(run.data, sets=sets, held_out=(pictures,), codes=10, vocabulary=0)
    run = replace(run, init=str(whole / "model"), data=data)
    folder = tmp_path / "run"
    model = runs.run(run, folder)
    (held_out,) = [line["held_out"] for line in log(folder) if "held_out" in line]
    assert held_out["pictures"]["vision_loss"] == pytest.approx(np.log(12), rel=0.2)
    config = open_model_files(model).config
    before = open_model_files(whole / "model").config
    assert (config.tokens.text, config.tokens.vision, config.tokens.codes) == (
        before.tokens.text,
        12,
        10,
    )
    opened = lwm.load(model)
    assert jnp.isfinite(opened.llama.embedding).all()
    assert len(open_shards(out, tokens=config.tokens, tokenizer=opened.tokenizer)) == 3


def test_mistakes_are_told_before_anything_runs(whole, tmp_path):
    run, folder = small(), tmp_path / "run"
    data = run.data
    two = (*data.held_out, *data.held_out)
    long = replace(data, rows=3)
    for changed, said in (
        (replace(run, mesh="4,1,1,1", data=long), "3 rows of the batch do not divide by dp 4"),
        (replace(run, mesh="1,1,8,1"), "4 attention heads do not divide by tp 8"),
        (replace(run, data=replace(data, vocabulary=0)), "give a tokenizer: init, data.tokenizer"),
        (replace(run, data=replace(data, vocabulary=99)), "vocabulary of 99 has no room"),
        (replace(run, data=replace(data, held_out=two)), "two held-out sets have one name"),
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


def test_updates_that_are_not_finite_name_their_examples(tmp_path, monkeypatch, whole):
    """After three in a row the run ends."""
    monkeypatch.setattr(
        runs, "read_llama", lambda *given, **more: broken(*given, **more), raising=True
    )
    read = runs.open_model_files

    def broken(opened, config, *, mesh, seed):
        from lwm.loading import read_llama

        model = read_llama(opened, config, mesh=mesh, seed=seed)
        return dataclasses.replace(model, embedding=model.embedding * jnp.nan)

    assert read is open_model_files
    run = replace(small(), init=str(whole / "model"))
    with pytest.raises(UserError, match="the updates of steps 1 to 3 are not finite"):
        runs.run(run, tmp_path / "run")
    lines = log(tmp_path / "run")
    assert [line["finite"] for line in lines] == [False] * 3
    assert all("chapter-" in name for line in lines for name in line["examples"])
    assert Tokenizer.open(whole / "tokenizer").vocab_size == 300
