"""RULER asked of programs that read or do not, stopped and continued, and its report."""

import json
from pathlib import Path

import pytest

from lwm.errors import UserError
from lwm.eval.ruler.config import TASKS, RulerConfig
from lwm.eval.ruler.report import RulerReport
from lwm.eval.ruler.run import DRAWING, PICTURE, REPORT, RESULTS, check, evaluate
from lwm.eval.ruler.task import RULES

GRID = RulerConfig(lengths=(2600, 4000), samples=2)
SMALL = RulerConfig(tasks=("niah_single_1", "fwe"), lengths=(900, 1500), samples=2)


def test_a_program_that_reads_is_right_in_all_tasks_and_a_blind_one_wrong(
    subject_of, reading, tmp_path
):
    seeing = evaluate(subject_of(reading)[0], GRID, tmp_path / "seeing").report
    blind = evaluate(subject_of(lambda text: "1234567 table")[0], GRID, tmp_path / "blind").report
    assert seeing.tasks == list(TASKS)
    for task in TASKS:
        for length in GRID.lengths:
            assert seeing.scores(task, length) == [1, 1], task
            assert blind.scores(task, length) == [0, 0], task
    assert len(seeing.rows) == 13 * 2 * 2
    assert (seeing.effective, blind.effective) == (4000, None)
    assert "effective length: below 2,600" in blind.statement()
    assert json.loads((tmp_path / "blind" / REPORT).read_text())["chance"] == 0


def test_a_program_that_reads_is_right_about_long_lists(subject_of, reading, tmp_path):
    config = RulerConfig(tasks=("cwe",), lengths=(9000,), samples=2)
    run = evaluate(subject_of(reading)[0], config, tmp_path)
    assert run.report.scores("cwe", 9000) == [1, 1]


def test_a_stopped_evaluation_continues_to_the_same_files(subject_of, reading, tmp_path):
    subject, program = subject_of(reading)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    evaluate(subject, SMALL, whole)
    first = list(program.asked)

    def stop(done: int, total: int) -> None:
        if done >= 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="2 of 8 answers"):
        evaluate(subject, SMALL, parts, progress=stop)
    with (parts / RESULTS).open("a") as file:
        file.write('{"task": "fwe", "context_le')  # killed while it wrote
    run = evaluate(subject, SMALL, parts)
    assert run.work.num_new == 6
    assert sorted(program.asked[len(first) :]) == sorted(first)
    for name in (RESULTS, REPORT, PICTURE, DRAWING):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_folder_grows_by_tasks_lengths_and_samples(subject_of, reading, tmp_path):
    subject, _ = subject_of(reading)
    evaluate(subject, RulerConfig(tasks=("fwe",), lengths=(900,), samples=1), tmp_path / "parts")
    grown = evaluate(subject, SMALL, tmp_path / "parts")
    assert grown.work.num_new == 7
    evaluate(subject, SMALL, tmp_path / "whole")
    assert (tmp_path / "parts" / REPORT).read_bytes() == (tmp_path / "whole" / REPORT).read_bytes()
    with pytest.raises(UserError, match="seed was 42, is 43"):
        check(RulerConfig(seed=43), tmp_path / "parts")


def report_of(scores: dict[tuple[str, int], list[float]]) -> RulerReport:
    """Returns a report of these scores."""
    rows = [
        {
            "task": task,
            "context_length": length,
            "sample": sample,
            "score": score,
            "built_length": length - sample,
        }
        for (task, length), listed in scores.items()
        for sample, score in enumerate(listed)
    ]
    questions = {"qa_1": "generated", "qa_2": {"name": "hotpot.json", "sha256": "0"}}
    header = {"model": {"name": "m"}, "questions": questions}
    return RulerReport(header=header, rows=rows, threshold=85.6)


def test_each_task_counts_as_much_in_the_average():
    report = report_of({("vt", 1024): [1.0] * 9, ("cwe", 1024): [0.5]})
    mean = report.mean(lengths=[1024])
    assert mean is not None
    assert (mean.score, mean.asked) == (0.75, 10)
    whole = json.loads(report.to_json())
    assert whole["axes"] == ["task", "context_length"]
    assert whole["overall"]["score"] == 0.75
    expected = {"task": "vt", "context_length": 1024, "asked": 9, "score": 1.0}
    assert expected.items() <= whole["cells"][0].items()
    assert [row["category"] for row in whole["by_category"]] == ["multi-hop tracing", "aggregation"]
    assert whole["by_length"][0]["built_length"] == [1016, 1024]


def test_the_effective_length_is_the_largest_of_at_least_the_threshold():
    scores = {1024: 0.9, 2048: 0.86, 4096: 0.85}
    report = report_of({(task, n): [share] for n, share in scores.items() for task in TASKS})
    assert report.effective == 2048
    assert report.statement() == (
        "effective length: 2,048 (average of at least 85.6% over the 13 tasks, "
        "with generated questions)"
    )
    part = report_of({("qa_2", 1024): [1.0]})
    assert part.statement() == (
        "effective length: 1,024, the largest asked (average of at least 85.6% over "
        "1 of the 13 tasks)"
    )
    assert json.loads(part.to_json())["effective_length"]["length"] == 1024
    ragged = {("vt", 1024): [1.0], ("fwe", 1024): [1.0], ("vt", 2048): [1.0]}
    assert report_of(ragged).effective == 1024  # not all tasks were asked at 2048
    assert "not known" in report_of({("vt", 1024): [1.0], ("fwe", 2048): [1.0]}).statement()


def test_the_table_has_tasks_categories_and_the_average():
    report = report_of({("vt", 1024): [1.0, 0.0], ("vt", 2048): [1.0, 1.0], ("fwe", 1024): [1.0]})
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in report.table().splitlines()]
    assert lines[0] == ["task", "1,024", "2,048"]
    table = {name: cells for name, *cells in lines[2:]}
    assert list(table) == ["vt", "fwe", "multi-hop tracing", "aggregation", "average"]
    assert table["vt"] == ["50.0 (9-91)", "100.0 (34-100)"]
    assert table["fwe"][1] == ""
    assert table["average"][0].startswith("75.0 (")


def test_an_evaluation_that_cannot_be_asked_is_refused_early(tmp_path, subject_of, reading):
    with pytest.raises(UserError, match="samples 0 must be 1 or more"):
        RulerConfig(samples=0)
    with pytest.raises(UserError, match="lengths are empty"):
        RulerConfig(lengths=())
    with pytest.raises(UserError, match="threshold 0 must"):
        RulerConfig(threshold=0.0)
    subject, program = subject_of(reading)
    with pytest.raises(UserError, match="length 1,500 has no room for vt: the smallest prompt has"):
        evaluate(subject, RulerConfig(tasks=("fwe", "vt"), lengths=(1500,)), tmp_path)
    assert not program.asked
    with pytest.raises(UserError, match="above the context of the model"):
        check(SMALL, tmp_path, context=1000)
    with pytest.raises(UserError, match="no-such-file"):
        check(RulerConfig(haystack=Path("no-such-file")), tmp_path)


def test_a_model_answers_after_the_start_that_is_given(tiny_model, tmp_path):
    config = RulerConfig(tasks=("fwe", "qa_2"), lengths=(1300,), samples=1)
    run = evaluate(tiny_model, config, tmp_path)
    assert run.work.num_new == 2
    for row in run.report.rows:
        assert row["prompt_tokens"] + RULES[row["task"]].max_tokens == row["built_length"] <= 1300
        assert row["response"]
    assert json.loads((tmp_path / REPORT).read_text())["model"]["name"] == "tiny"
    assert (tmp_path / DRAWING).read_text().count("qa_2") >= 1
