"""The scripts of the original LWM, by the commands that docs/coming-from-lwm.md names for them.

Those for training are in test_train.py, and `sample_pyt.py` is in examples/test_examples.py.
"""

import json
from pathlib import Path

import pytest

from lwm.cli.app import main
from lwm.data.tokenized import CLIPS

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-lwm.md"
SCRIPTS = (
    *("run_eval_needle", "run_eval_needle_multi", "create_needle_data", "run_sample_image"),
    *("run_sample_video", "run_vision_chat", "run_train_text", "run_train_vision_text"),
    "sample_pyt",
)
MODEL = "tiny-vision"


@pytest.fixture
def lwm(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["lwm", *map(str, arguments)])
        main()

    return run


def test_each_script_has_a_row():
    rows = PAGE.read_text().partition("## Flags")[0]
    assert all(name in rows for name in SCRIPTS)


def test_needles_are_asked_for_as_there(lwm, tmp_path):
    # As `create_needle_data.py` writes it.
    book = {"text": "It was the best of times, it was the worst of times. " * 99}
    (tmp_path / "pg19.jsonl").write_text(json.dumps(book) + "\n")
    shape = ("--lengths", 512, "--rounds", 1, "--haystack", "pg19.jsonl", "--max-tokens", 4)
    lwm("eval", "needle", MODEL, "--prompt", "lwm", "--depths", 0, 100, *shape, "--out", "one")
    lwm("eval", "needle", MODEL, "--needles", 2, "--ask", 1, *shape, "--out", "several")
    for name, count in (("one", 2), ("several", 1)):
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["overall"]["asked"] == count
    sizes = ("--train", 3, "--test", 1, "--lengths", 512)
    lwm("data", "needles", "--model", MODEL, *sizes, "--out", "needles.jsonl")
    assert len((tmp_path / "needles.jsonl").read_text().splitlines()) == 3


def test_images_and_videos_are_drawn_and_talked_about_as_there(lwm, tmp_path, capsys):
    lwm("generate", "image", MODEL, "octopus", "-o", "image.png")
    lwm("generate", "video", MODEL, "tiger", "--frames", 4, "--first-as-image", "-o", "clip.webp")
    assert {file.name for file in tmp_path.iterdir()} == {"image.png", "clip.webp"}
    capsys.readouterr()
    lwm("chat", MODEL, "What is shown in this video?", "--video", CLIPS / "1f419.webp")
    assert "octopus" in capsys.readouterr().out
