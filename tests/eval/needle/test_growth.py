"""Folders that grow by lengths, depths and rounds, and those of before, which do not."""

import dataclasses
import json

import pytest

from lwm.errors import UserError
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.evaluation import NeedleEvaluation
from lwm.eval.needle.prompts import Cell, Prompts
from lwm.eval.needle.run import DRAWING, PICTURE, REPORT, RESULTS, check
from lwm.eval.needle.texts import RoundTexts, Source, van_der_corput

GRID = NeedleConfig(lengths=(600, 900), depths=(0.0, 100.0), rounds=2, max_tokens=40)
LARGER = dataclasses.replace(GRID, lengths=(600, 900, 1300), depths=(0.0, 40.0, 100.0), rounds=3)


@pytest.mark.parametrize("needles", [1, 3])
def test_a_grown_folder_is_that_of_the_whole_grid(
    byte_tokenizer, oracle, ask_program, tmp_path, needles
):
    small, large = (dataclasses.replace(grid, needles=needles) for grid in (GRID, LARGER))
    first, more, at_once = (oracle(byte_tokenizer) for _ in range(3))
    ask_program(first, small, byte_tokenizer, tmp_path / "grown")
    grown = ask_program(more, large, byte_tokenizer, tmp_path / "grown")
    ask_program(at_once, large, byte_tokenizer, tmp_path / "whole")
    # What was recorded is not asked again.
    assert {*first.asked, *more.asked} == {*at_once.asked}
    assert len(first.asked) + len(more.asked) == len(at_once.asked) == len(grown.rows)
    names = (REPORT, PICTURE, DRAWING) if needles == 1 else (REPORT,)
    for name in names:
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    lines = [
        (tmp_path / folder / RESULTS).read_bytes().splitlines() for folder in ("grown", "whole")
    ]
    assert lines[0][0] == lines[1][0]
    assert sorted(lines[0]) == sorted(lines[1])


def test_the_report_covers_all_that_was_recorded(
    byte_tokenizer, oracle, blind, ask_program, tmp_path
):
    ask_program(oracle(byte_tokenizer), GRID, byte_tokenizer, tmp_path)
    other = dataclasses.replace(GRID, lengths=(1300,), depths=(40.0,), rounds=1)
    report = ask_program(blind(byte_tokenizer), other, byte_tokenizer, tmp_path)
    written = json.loads((tmp_path / REPORT).read_text())
    assert written["grid"] == {"lengths": [600, 900, 1300], "depths": [0, 40, 100], "rounds": 2}
    asked = [(c["context_length"], c["depth_percent"], c["asked"]) for c in written["cells"]]
    assert asked == [(600, 0, 2), (600, 100, 2), (900, 0, 2), (900, 100, 2), (1300, 40, 1)]
    assert written["overall"]["correct"] == 8
    assert "   - " in report.table()
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("needles", [1, 3])
def test_a_prompt_depends_on_its_cell_alone(tokenizer, needles):
    small, large = (
        Prompts(dataclasses.replace(grid, needles=needles), tokenizer) for grid in (GRID, LARGER)
    )
    assert set(small.cells) < set(large.cells)
    for cell in small.cells:
        assert small.build(cell) == large.build(cell)


def test_rounds_fill_the_source_evenly(byte_tokenizer, prose):
    assert [van_der_corput(n) for n in range(6)] == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]
    source = Source.open(prose(400))
    starts = [source.start(round) for round in range(8)]
    for round, start in enumerate(starts):
        assert source.text[start:].startswith("Sentence number")
        assert 0 <= start - len(source.text) * van_der_corput(round) <= 60
    assert len(set(starts)) == 8


def test_a_round_goes_on_at_the_start_of_the_source(byte_tokenizer, prose):
    source = Source.open(prose(60))
    size = len(source.text)
    start = source.start(1)
    assert 0 < start < size
    haystack, at, end = RoundTexts(source, byte_tokenizer, longest=2 * size).text(1, 2 * size)
    whole = source.text[start:] + source.text[:start]
    assert haystack.text.startswith(whole * 2)
    assert (at, end) == (0, size)


def test_a_prompt_is_the_same_whether_or_not_the_haystack_may_be_repeated(byte_tokenizer, prose):
    once = dataclasses.replace(GRID, haystack=prose(30), lengths=(600, 1100), rounds=3)
    often = dataclasses.replace(once, lengths=(600, 1100, 2000), repeat=True)
    built, again = Prompts(once, byte_tokenizer), Prompts(often, byte_tokenizer)
    for cell in built.cells:
        question = built.build(cell)
        assert question == again.build(cell)
        assert question.truth["is_repeated"] is False
    assert again.build(Cell(length=2000, depth=0.0, round=2)).truth["is_repeated"]
    with pytest.raises(UserError, match=r"prose\.txt is too short for length 2,000: all of it"):
        Prompts(dataclasses.replace(often, repeat=False), byte_tokenizer).require_possible()


def earlier_folder(config, subject, out, *, answers):
    """Writes results as the version before did, without all answers."""
    evaluation = NeedleEvaluation(config, subject, earlier=True)
    header = evaluation.header()
    assert "grid" not in header
    out.mkdir()
    lines = [header]
    for cell in evaluation.cells[:answers]:
        truth = (built := evaluation.question(cell)).truth
        (needle,), (depth,) = truth["needles"], truth["depths"]
        lines.append(
            {
                "context_length": cell.length,
                "depth_percent": cell.depth,
                "response": needle.number,
                "answer": needle.number,
                "correct": True,
                "seed": cell.round,
                "city": needle.city,
                "built_length": built.built_length,
                "built_depth_percent": round(depth, 2),
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / RESULTS).write_text(text)
    return text


def test_a_folder_of_before_is_finished_and_does_not_grow(
    byte_tokenizer, oracle, ask_program, subject_of, tmp_path
):
    program = oracle(byte_tokenizer)
    out = tmp_path / "earlier"
    before = earlier_folder(GRID, subject_of(program, byte_tokenizer), out, answers=5)
    for grown in (
        dataclasses.replace(GRID, rounds=3),
        dataclasses.replace(GRID, lengths=(600, 900, 1300)),
        dataclasses.replace(GRID, needles=2),
    ):
        with pytest.raises(
            UserError,
            match=r"results do not grow: it can be finished with one needle and lengths 600 900, "
            r"depths 0 100, rounds 2 only; choose another folder",
        ):
            check(grown, out)
    with pytest.raises(UserError, match=r"config\.seed was 1234, is 5"):
        check(dataclasses.replace(GRID, seed=5), out)
    report = ask_program(program, GRID, byte_tokenizer, out)
    assert len(program.asked) == 3
    assert report.score().accuracy == 1
    assert report.score().asked == 8
    assert (out / RESULTS).read_text().startswith(before)
    # Their rounds start elsewhere.
    now = Prompts(GRID, byte_tokenizer)
    assert {tuple(now.build(cell).ids) for cell in now.cells if cell.round == 1}.isdisjoint(
        program.asked
    )
