import json
import signal
from pathlib import Path
from typing import Any

import pytest

from lwm.cli import train as commands
from lwm.cli.app import main
from lwm.convert.export import save_model
from lwm.convert.open import open_model_files
from lwm.errors import UserError
from lwm.recipes import RECIPES, debug
from lwm.train.loop import Stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stopped_run_does_not_end_as_a_complete_one(number, monkeypatch, tmp_path, capsys):
    def stop(*_, **__):
        raise Stopped(3, number)

    monkeypatch.setattr("lwm.train.run.run", stop)
    with pytest.raises(SystemExit) as ended:
        commands.train("debug", debug(), commands.Options(out=tmp_path))
    assert ended.value.code == 128 + number
    assert "stopped after step 3; run the same again to go on" in capsys.readouterr().err


def test_a_plan_shows_the_stages_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = commands.Options(plan=True)
    commands.train("lwm", RECIPES["lwm"](), options)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:11]] == [
        *(f"text-{size}" for size in ("32k", "128k", "256k", "512k", "1m")),
        *("1k", "8k", "chat-32k", "chat-128k", "chat-1m"),
    ]
    assert lines[5].split()[1:7] == ["1.89e+09", "450", "4", "1,048,576", "5e+07", "1,-1,16,4"]
    assert lines[-2].startswith("in all 5.44e+11 tokens and 3.06e+22 FLOPs; model: 32 layers")
    commands.train("debug", debug(), options)
    assert "debug" in capsys.readouterr().out
    with pytest.raises(UserError, match="vqgan-64 trains a VQGAN; plans are of language models"):
        commands.train("vqgan-64", RECIPES["vqgan-64"](), options)
    assert not list(tmp_path.iterdir())


def test_a_curriculum_is_a_command(tmp_path, capsys, monkeypatch):
    """Options reach its stages, and its evaluations are those of `lwm eval all`."""
    monkeypatch.chdir(tmp_path)
    found = {}

    def run(config, folder, **given):
        found.update(config=config, folder=folder, **given)
        return folder / "model"

    monkeypatch.setattr("lwm.train.curriculum.run_curriculum", run)
    options = ["--stages.1.run.training.steps", "7", "--out", "here"]
    monkeypatch.setattr("sys.argv", ["lwm", "train", "lwm", *options])
    main()
    assert [stage.run.training.steps for stage in found["config"].stages[:3]] == [1200, 7, 3000]
    assert found["folder"] == Path("here")
    assert "needle" in found["evaluations"]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Returns the run that `lwm train` makes of options."""
    monkeypatch.chdir(tmp_path)
    found: list[Any] = []

    def note(run, folder, **given):
        found.append(run)
        return folder / "model"

    for name in ("run.run", "curriculum.run_curriculum"):
        monkeypatch.setattr(f"lwm.train.{name}", note)

    def make(*options):
        monkeypatch.setattr("sys.argv", ["lwm", "train", *options])
        main()
        return found.pop()

    return make


def test_sets_are_called_after_the_files_that_replace_theirs(asked):
    assert [one.name for one in asked("debug").data.sets] == ["chapters"]
    run = asked("debug", "--data.sets.0.files", "a/my book.txt", "b.txt")
    names = [one.name for one in (*run.data.sets, *run.data.held_out)]
    assert names == ["my book + 1", "chapter 3"]
    run = asked("debug", "--data.sets.0.files", "a.txt", "--data.sets.0.name", "mine")
    assert run.data.sets[0].name == "mine"
    world = "world:train,count=10"
    run = asked("tiny-vision", *(f"--data.held-out.{n}.files={world}" for n in (0, 1)))
    # Both would have the name of the files, and held-out sets need names of their own.
    assert [one.name for one in run.data.held_out] == ["drawn", "told"]
    stage = asked("laptop-curriculum", "--stages.1.run.data.sets.0.files", world).stages[1]
    assert stage.run.data.sets[0].name == "world:train"


def test_sets_are_added(asked):
    add = "--data.add"
    run = asked("debug", add, "a.txt", "b.txt", "weight=2", add, "c.txt", "name=more")
    assert [(one.files, one.name, one.weight) for one in run.data.sets[1:]] == [
        (("a.txt", "b.txt"), "a + 1", 2.0),
        (("c.txt",), "more", 1.0),
    ]
    clips = asked("tiny-vision", add, "clips").data
    assert clips.sets[-1].format == clips.sets[0].format
    assert asked("vqgan-64", add, "clips", "weight=0.5").data.sets[-1].weight == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["debug", "--data.add", "weight=2"], "--data.add has no files"),
        (["debug", "--data.add", "a.txt", "weight=x"], "weight=x must be a number above 0"),
        (["debug", "--data.add", "a.txt", "weight=0"], "weight=0 must be a number above 0"),
        (["lwm", "--data.add", "a.txt"], "is for a run of one stage; write a recipe"),
    ],
)
def test_sets_that_cannot_be_added_are_refused(asked, capsys, options, said):
    with pytest.raises(SystemExit):
        asked(*options)
    assert said in capsys.readouterr().err


SMALL = (
    *("--training.steps", "2", "--training.optimizer.schedule.warmup", "1"),
    *("--data.packing.length", "64", "--data.rows", "2", "--data.streams", "1"),
    *("--mesh", "1,1,1,1", "--compute.remat", "none"),
)


def test_samples_are_written_at_validations_and_change_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def losses(*options):
        steps = ("--training.steps", "4", "--training.validate-every", "2")
        out = f"runs/{len(options)}"
        command = ["lwm", "train", "debug", *SMALL, *steps, *options, "--out", out]
        monkeypatch.setattr("sys.argv", command)
        main()
        lines = map(json.loads, Path(out, "log.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    assert losses("--sample", "Call me", "The whale") == losses()
    found = sorted(Path("runs/3/samples").iterdir())
    assert [file.name for file in found] == ["000002.md", "000004.md"]
    first, second = found[1].read_text().split("\n\n---\n\n")
    assert first.startswith("**Call me**")
    assert second.startswith("**The whale**")


def test_the_original_s_training_scripts_have_recipes(tmp_path, monkeypatch, model):
    """`run_train_text.sh` and then `run_train_vision_text.sh`, on tiny weights and own files."""
    monkeypatch.chdir(tmp_path)
    save_model(model.llama.stack(), model.tokenizer, tmp_path / "llama")
    text = {"text": "All visible objects, man, are but as pasteboard masks. " * 4}
    Path("books.jsonl").write_text(json.dumps(text) + "\n")
    picture = {"caption": "a whale", "vision": [5] * 4, "frames": 1}
    Path("pictures.jsonl").write_text(json.dumps(picture) + "\n")

    def train(recipe, *options):
        command = ["lwm", "train", recipe, *SMALL, *options, "--out", f"runs/{recipe}"]
        monkeypatch.setattr("sys.argv", command)
        main()
        return open_model_files(f"runs/{recipe}/model").config

    books = ("--data.sets.0.files", "books.jsonl", "--data.sets.0.least-tokens", "0")
    longer = train("lwm-text-32k", "--init", "llama", *books)
    assert (longer.max_context, longer.rope.theta) == (32_768, 1e6)
    pictures = [f"--data.sets.{number}.files" for number in range(3)]
    files = [each for option in pictures for each in (option, "pictures.jsonl")]
    sees = train("lwm-1k", "--init", "runs/lwm-text-32k", *files)
    assert (sees.max_context, sees.rope.theta, sees.tokens.codes) == (1024, 5e7, 8192)
