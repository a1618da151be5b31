"""Figures of runs: logs are read, and every kind of run can be plotted."""

import io
import json
import math

import matplotlib.image
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.train.monitor.plot import COLOURS, moving_mean, plot, plot_runs
from lwm.train.monitor.run_log import RunLog

POSITIONS = [[0, 64, 3.1, 900], [64, 128, None, 0, None], [128, 256, 2.7, 500, 0.1]]
"""The first range as in logs of older versions, without an error."""


def update(step, **changes):
    line = {"step": step, "loss": 3 + 1 / step, "learning_rate": 1e-4 * step, "tokens": 1000}
    return line | {"seconds": 2.0 if step > 1 else 50.0, "finite": True} | changes


def validation(step, **sources):
    return {"step": step, "held_out": sources}


BOOKS = {"text_loss": 2.9, "vision_loss": None, "tokens": 1400, "by_position": POSITIONS}
FILMS = {"text_loss": 2.0, "vision_loss": 5.0, "tokens": 10, "by_position": []}


@pytest.fixture
def write(tmp_path):
    def make(name, lines, *, cut=0):
        (tmp_path / name).mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        (tmp_path / name / "log.jsonl").write_bytes(text[: len(text) - cut])
        return tmp_path / name

    return make


def test_a_log_is_read_up_to_where_it_was_cut(write):
    lines = [update(1), update(2, loss=math.nan, finite=False), validation(2, books=BOOKS)]
    lines += [update(3), validation(3, books=BOOKS, films=FILMS), update(4)]
    found = RunLog.read(write("cut", lines, cut=9), "cut")
    np.testing.assert_array_equal(found.column("step"), [1, 2, 3])
    np.testing.assert_array_equal(found.scores, [4, np.nan, 3 + 1 / 3])
    np.testing.assert_array_equal(found.throughput, [20, 500, 500])
    np.testing.assert_array_equal(found.column("learning_rate"), [1e-4, 2e-4, 1e-4 * 3])
    assert found.held_out("books", "text_loss") == [(2, 2.9), (3, 2.9)]
    assert found.held_out("books", "vision_loss") == []
    assert found.held_out("films", "text_loss") == [(3, 2.0)]
    assert found.held_out("films", "vision_loss") == [(3, 5.0)]
    steps, along = zip(*found.by_position("books"), strict=True)
    assert steps == (2, 3)
    np.testing.assert_array_equal(along, [[(0, 64, 3.1, np.nan), (128, 256, 2.7, 0.1)]] * 2)
    assert found.by_position("films") == []


def test_the_logs_of_a_curriculum_s_stages_are_read_as_one(write, tmp_path):
    write("all/01-first", [update(1), update(2), validation(2, books=BOOKS)])
    write("all/02-longer", [update(1, loss=2.5), validation(1, books=BOOKS)])
    found = RunLog.read(tmp_path / "all", "all")
    np.testing.assert_array_equal(found.column("step"), [1, 2, 3])
    np.testing.assert_array_equal(found.scores, [4, 3.5, 2.5])
    assert found.held_out("books", "text_loss") == [(2, 2.9), (3, 2.9)]
    assert found.stages == ((0, "first"), (2, "longer"))
    tokens = found.over_tokens()
    np.testing.assert_array_equal(tokens.column("step"), [1000, 2000, 3000])
    assert tokens.held_out("books", "text_loss") == [(2000, 2.9), (3000, 2.9)]
    assert tokens.stages == ((0, "first"), (2000, "longer"))
    assert "<!-- tokens -->" in plot([found], format="svg", over="tokens").decode()
    picture = plot([found], format="svg").decode()
    assert all(f"<!-- {name} -->" in picture for name in ("first", "longer"))


def test_means_lie_on_a_straight_course_and_pass_over_what_is_missing():
    line = np.arange(100.0)
    smooth = moving_mean(line, 9)
    np.testing.assert_allclose(smooth[1:-1], line[1:-1])
    wild = np.where(np.arange(100) % 2, 1.0, -1.0)
    assert np.abs(moving_mean(wild, 9)).max() < 0.4
    wild[::2] = np.nan
    np.testing.assert_allclose(moving_mean(wild, 9), 1)
    assert np.isnan(moving_mean(np.full(3, np.nan), 1)).all()


def long(count, **sources):
    """200 steps with `count` validations, a loss that is not finite, and one that is wild."""
    lines = [update(step) for step in range(1, 201)]
    lines[99] = update(100, loss=math.nan, finite=False)
    lines[149] = update(150, loss=1e6)
    for i in range(count):
        lines.append(validation(201 + i, **sources))
    return lines


@pytest.mark.parametrize(
    ("lines", "plotted"),
    [
        ([update(1)], 1),
        ([update(1, loss=math.nan, finite=False), update(2, loss=math.inf, finite=False)], 1),
        ([update(1), update(2), update(3)], 1),
        ([{"step": step, "loss": 3.0, "finite": True} for step in (1, 2, 3)], 1),
        (long(0), 1),
        (long(1, books=BOOKS), 2),
        (long(2, books=BOOKS, films=FILMS), 3),
        (long(5, **{f"set {i}": BOOKS for i in range(9)}), 7),
        (long(2, books=BOOKS | {"text_loss": None, "by_position": None}), 1),
        (long(2, books=BOOKS | {"text_loss": math.nan}), 2),
    ],
)
def test_every_kind_of_run_can_be_plotted(write, lines, plotted):
    """Warnings of matplotlib would be errors; each curve has its colour."""
    picture = plot([RunLog.read(write("run", lines), "run")], format="svg").decode()
    assert [colour.lower() in picture for colour in COLOURS[:-1]] == [
        number < plotted for number in range(len(COLOURS) - 1)
    ]
    sources = [found for line in lines for found in line.get("held_out", {}).values()]
    validated = any(found["by_position"] for found in sources)
    assert ("<!-- no validation -->" in picture) != validated


def vqgan_update(step, **changes):
    line = {"step": step, "loss": 1 / step, "psnr": 10.0 + step, "perplexity": 9.0, "frames": 16}
    return line | {"learning_rate": 1e-4 * (step - 1), "seconds": 2.0, "finite": True} | changes


FRAMES = {"psnr": 20.0, "psnr_foreground": math.nan}


@pytest.mark.parametrize(
    "lines",
    [
        [vqgan_update(1)],
        [vqgan_update(1), vqgan_update(2, psnr=math.nan, finite=False)],
        [*map(vqgan_update, range(1, 99)), validation(98, stills=FRAMES, clips=FRAMES)],
    ],
)
def test_runs_of_vqgans_can_be_plotted(write, lines):
    assert plot_runs((write("one", lines),)).stat().st_size > 10_000


def test_several_runs_of_vqgans_lie_over_each_other(write):
    folders = tuple(
        write(name, [vqgan_update(1), validation(1, **{source: FRAMES})])
        for name, source in (("a", "stills"), ("b", "clips"))
    )
    plotted = plot_runs(folders, folders[0] / "both.svg").read_text()
    for text in ("held-out stills (all pixels)", "held-out clips (foreground)"):
        assert f"<!-- {text} -->" in plotted


def test_several_runs_lie_over_each_other(write):
    names = ["one", "two", "three"]
    runs = [RunLog.read(write(name, long(n, books=BOOKS)), name) for n, name in enumerate(names)]
    picture = plot(runs, format="svg").decode()
    for name, colour in zip(names, COLOURS, strict=False):
        assert picture.count(f"<!-- {name} -->") == 1, "once in the legend"
        assert colour.lower() in picture
    assert COLOURS[3].lower() not in picture
    assert "<!-- held-out books -->" in picture


def test_runs_of_one_name_are_labelled_by_their_paths(write, tmp_path):
    folders = tuple(write(f"{n}/run", [update(1)]) for n in (0, 1))
    picture = plot_runs(folders, tmp_path / "new" / "all.svg").read_text()
    for folder in folders:
        assert f"<!-- {folder} -->" in picture


def test_the_picture_lies_in_the_folder_of_the_run_and_is_the_same_again(write):
    folder = write("run", long(3, books=BOOKS))
    out = plot_runs((folder,))
    assert out == folder / "plot.png"
    first = out.read_bytes()
    assert matplotlib.image.imread(io.BytesIO(first)).shape == (1200, 1800, 4)
    assert plot_runs((folder,)).read_bytes() == first


def test_what_cannot_be_plotted_is_named_in_one_line(write, tmp_path):
    empty, cut = write("empty", []), write("cut", [update(1)], cut=5)
    bad = write("bad", [update(1), update(2)])
    log = bad / "log.jsonl"
    log.write_text("[1]\n" + log.read_text())
    odd = tmp_path / "odd"
    (odd / "log.jsonl").mkdir(parents=True)
    good, frames = write("good", [update(1)]), write("frames", [vqgan_update(1)])
    for folders, out, says in [
        ((), None, "no run is given"),
        (
            (tmp_path / "none",),
            None,
            r"none holds no log\.jsonl; give the folder of a run or a curriculum",
        ),
        ((log,), None, r"log\.jsonl holds no log\.jsonl; give the folder of a run or a curriculum"),
        ((odd,), None, r"odd/log\.jsonl cannot be read"),
        ((empty,), None, r"empty/log\.jsonl holds no step yet"),
        ((cut,), None, r"cut/log\.jsonl holds no step yet"),
        ((frames, empty), None, r"empty/log\.jsonl holds no step yet"),
        ((frames, good), None, r"share no curve; plot them apart"),
        ((good, bad), None, r"bad/log\.jsonl:1 is no line of a log"),
        ((good,), good / "a.doc", r"'doc' is no format of a figure; use one of .*png"),
        ((good,), good / "plot", r"'' is no format of a figure"),
        ((good,), log / "a.png", r"log\.jsonl cannot be written: File exists"),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            plot_runs(folders, out)
        assert "\n" not in str(caught.value)
