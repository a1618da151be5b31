"""Comparisons of models by the results of the same questions."""

import pytest

from lwm.errors import UserError
from lwm.eval.compare import compare
from lwm.eval.results import Results


@pytest.fixture
def record(tmp_path):
    """Writes a folder of results: `score` returns that of a length and a round."""

    def write(name, score, *, part="needle", lengths=(1024, 2048), rounds=20, prompt="", **config):
        folder = tmp_path / name / part
        folder.mkdir(parents=True, exist_ok=True)
        header = {
            "evaluation": part,
            "model": {"name": name},
            "config": {"seed": 1, "prompt": "chat"} | config,
            "haystack": {"sha256": "book", "tokens": 5},
        }
        results = Results(folder / "results.jsonl", header)
        for length in lengths:
            for number in range(rounds):
                results.append(
                    {
                        "context_length": length,
                        "seed": number,
                        "response": name,
                        "score": float(score(length, number)),
                        "prompt_sha256": f"{length} {number} {prompt}",
                    }
                )
        return tmp_path / name

    return write


def only(report):
    (comparison,) = report["comparisons"]
    (part,) = comparison["parts"]
    return part


def test_equal_answers_do_not_differ(record):
    folders = [record(name, lambda length, number: number % 2) for name in ("a", "b")]
    part = only(compare(folders))
    assert part["paired"]
    assert part["missing"] == [0, 0]
    for change in (part["overall"], *part["by_length"]):
        assert (change["first"], change["second"]) == (0.5, 0.5)
        assert (change["difference"], change["p_value"]) == (0, 1)
        assert change["interval95"] == [0, 0]
    assert [each["context_length"] for each in part["by_length"]] == [1024, 2048]


def test_a_difference_at_one_length_is_found_there_and_not_at_the_other(record):
    first = record("a", lambda length, number: length == 1024 or number < 4)
    second = record("b", lambda length, number: length == 1024 or number < 16)
    part = only(compare([first, second]))
    short, long = part["by_length"]
    assert (short["difference"], short["p_value_holm"]) == (0, 1)
    assert long["difference"] == pytest.approx(0.6)
    assert 0 < long["interval95"][0] < 0.6 < long["interval95"][1] < 1
    assert long["p_value"] < long["p_value_holm"] < 0.01
    assert part["overall"]["asked"] == 40
    assert only(compare([second, first]))["overall"]["difference"] == pytest.approx(-0.3)


def test_other_prompts_are_compared_without_pairs_and_with_wider_intervals(record):
    first = record("a", lambda length, number: number < 4)
    paired = record("b", lambda length, number: number < 16)
    apart = record("c", lambda length, number: number < 16, prompt="other tokenizer")
    report = compare([first, paired, apart])
    one, two = (comparison["parts"][0] for comparison in report["comparisons"])
    assert [one["paired"], two["paired"]] == [True, False]
    assert one["overall"]["difference"] == two["overall"]["difference"] == pytest.approx(0.6)
    assert two["overall"]["p_value"] is None
    widths = [high - low for low, high in (each["overall"]["interval95"] for each in (one, two))]
    assert widths[0] < widths[1] < 1
    assert any("not paired" in note and "a and c" in note for note in report["notes"])


def test_tasks_are_compared_one_by_one(tmp_path):
    for name, worse in (("a", None), ("b", "vt")):
        (tmp_path / name).mkdir()
        header = {"evaluation": "ruler", "model": {"name": name}, "config": {}}
        results = Results(tmp_path / name / "results.jsonl", header)
        for number in range(60):
            task = ("vt", "cwe", "fwe")[number % 3]
            row = {"context_length": 1024, "task": task, "sample": number // 3}
            results.append(row | {"score": float(task != worse)})
    part = only(compare([tmp_path / "a", tmp_path / "b"]))
    found = {each["task"]: each for each in part["by_task"]}
    assert list(found) == ["vt", "cwe", "fwe"]
    assert [each["difference"] for each in found.values()] == [-1, 0, 0]
    assert found["vt"]["asked"] == 20
    assert 3 * found["vt"]["p_value"] == pytest.approx(found["vt"]["p_value_holm"], abs=1e-5)
    assert part["overall"]["difference"] == pytest.approx(-1 / 3, abs=1e-6)


def test_questions_and_parts_that_are_missing_are_counted(record):
    first = record("a", lambda length, number: 1, lengths=(1024,))
    second = record("b", lambda length, number: 1, rounds=15)
    record("b", lambda length, number: 1, part="ruler")
    report = compare([first, second])
    part = only(report)
    assert part["missing"] == [15, 5]
    assert part["overall"]["asked"] == 15
    assert {
        "needle: 15 questions of the other are missing in a",
        "needle: 5 questions of the other are missing in b",
        "ruler: only b was asked",
    } == set(report["notes"])


def test_losses_of_the_same_texts_are_compared_and_of_other_tokens_not(tmp_path):
    for name, loss, ids in (("a", 3.0, "x"), ("b", 2.5, "x"), ("c", 2.0, "y")):
        (tmp_path / name).mkdir()
        header = {
            "evaluation": "perplexity",
            "model": {"name": name},
            "config": {"length": 9},
            "texts": {"book": "sha"},
        }
        results = Results(tmp_path / name / "results.jsonl", header)
        for segment in range(8):
            row = {"document": "book", "segment": segment, "prompt_sha256": f"{ids} {segment}"}
            nll = loss * 8 + segment
            results.append(row | {"context": 9, "by_position": [[1, 9, nll, 8]]})
            results.append(row | {"context": 4})
    part = only(compare([tmp_path / "a", tmp_path / "b"]))
    assert part["unit"] == "nats"
    assert part["overall"]["difference"] == pytest.approx(-0.5)
    assert part["overall"]["p_value"] < 0.01
    assert part["by_length"] == []
    with pytest.raises(UserError, match="a and c have no results of the same questions"):
        compare([tmp_path / "a", tmp_path / "c"])


def test_folders_with_other_questions_or_without_results_are_refused_in_one_line(record, tmp_path):
    first = record("a", lambda length, number: 1)
    other = record("b", lambda length, number: 1, seed=2)
    with pytest.raises(UserError, match=r"not have the same questions \(config.seed was 1, is 2\)"):
        compare([first, other])
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no results of an evaluation"):
        compare([first, empty])
    with pytest.raises(UserError, match="two folders"):
        compare([first])


def test_models_of_one_name_are_called_by_their_folders(record):
    first = record("a", lambda length, number: 1)
    report = compare([first, first])
    assert [each["name"] for each in report["models"]] == [f"a ({first})"] * 2
