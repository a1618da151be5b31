"""Warnings of data: the same one many times is a line with a count."""

from types import SimpleNamespace
from typing import Any

from lwm.train.data_warnings import DataWarnings


def delivered(*faults, dropped=0, split=0) -> Any:
    return SimpleNamespace(faults=list(faults), read={"dropped": dropped, "split": split})


def test_the_same_reason_is_one_line_with_the_first_place_and_then_a_count():
    said: list[str] = []
    warnings = DataWarnings(said.append)
    for line in range(1, 101):
        faults = [f"a.jsonl, line {line}: no text, 3 bytes in line {line}"]
        warnings.report([delivered(*faults, *(["b.txt is empty"] if line == 7 else []))])
    first = "a.jsonl, line 1: no text, 3 bytes in line 1"
    assert said == [
        f"left out: {first}",
        "left out: b.txt is empty",
        f"left out: 10 examples so far like the first, {first}",
        f"left out: 100 examples so far like the first, {first}",
    ]


def test_long_examples_are_reported_once():
    said: list[str] = []
    warnings = DataWarnings(said.append)
    for _ in range(3):
        warnings.report([delivered(dropped=1), delivered(split=2)])
    assert [text.partition("; ")[2] for text in said] == ["the log counts them"]
