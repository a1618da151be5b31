"""Intervals against published ones, and the table."""

import json

import pytest

from lwm.eval.needle.report import NeedleReport, Score
from lwm.eval.statistics import wilson

HEADER = {"evaluation": "needle", "model": {"name": "m"}}


def report(lengths, depths, *, correct=lambda length, depth, turn: turn == 0, rounds=2):
    rows = [
        {
            "context_length": length,
            "depth_percent": depth,
            "correct": correct(length, depth, turn),
            "seed": turn,
            "built_length": length - turn,
        }
        for length in lengths
        for depth in depths
        for turn in range(rounds)
    ]
    return NeedleReport(header=HEADER, rows=rows)


@pytest.mark.parametrize(
    ("correct", "asked", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_intervals(correct, asked, low, high):
    assert wilson(correct, asked) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(asked - correct, asked)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_certainty_has_exact_ends():
    assert wilson(0, 3)[0] == 0
    assert wilson(3, 3)[1] == 1


def test_scores_are_counted_by_cell_length_and_depth():
    found = report((1000, 2000), (0.0, 50.0), correct=lambda length, depth, turn: depth == 0)
    assert found.score() == Score(scores=(1.0, 1.0, 0.0, 0.0) * 2)
    assert found.score(length=1000) == Score(scores=(1.0, 1.0, 0.0, 0.0))
    assert found.score(depth=50.0) == Score(scores=(0.0,) * 4)
    assert found.score(length=2000, depth=0.0).accuracy == 1


def test_json_holds_all_margins():
    written = json.loads(report((1000, 2000), (0.0, 50.0)).to_json())
    assert written["model"] == {"name": "m"}
    assert written["overall"]["accuracy"] == 0.5
    assert len(written["cells"]) == 4
    assert [entry["depth_percent"] for entry in written["by_depth"]] == [0, 50]
    assert written["by_length"][0]["built_length"] == [999, 1000]
    assert written["cells"][0]["wilson95"] == [0.094531, 0.905469]


def test_table_lines_up():
    lines = report((1000, 131072), (0.0, 12.5, 100.0)).table().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "131,072" in lines[0]
    assert lines[3].split() == ["|", "12.5%", "|", "50%", "|", "50%", "|", "50%", "(15-85)", "|"]
    assert "50% (25-75)" in lines[-1]
