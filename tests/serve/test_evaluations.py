"""Results of evaluations over HTTP: their list, their rows, and prompts that are built again."""

import json

import pytest

from lwm.eval.ask import digest
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.evaluation import NeedleEvaluation
from lwm.eval.question import Response
from lwm.eval.subject import Subject
from lwm.serve import evaluations

GRID = {"lengths": [1024, 2048], "depths": [0.0, 50.0, 100.0], "rounds": 2}
HEADER = {"evaluation": "needle", "model": {"name": "m"}, "config": {}, "grid": GRID}
ROW = {"context_length": 1024, "depth_percent": 0.0, "seed": 0, "score": 1.0}
SEVERAL = NeedleConfig(lengths=(900,), needles=3, ask=2, rounds=2, max_tokens=40)
SINGLE = NeedleConfig(lengths=(700, 900), depths=(0.0, 40.0, 100.0), rounds=2, max_tokens=40)


def write(folder, *lines, rest=""):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text + rest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with results of several kinds, and links out of it."""
    root = tmp_path_factory.mktemp("evaluations")
    inside = root / "inside"
    write(inside / "a" / "needle", HEADER, ROW, ROW, rest='{"context_le')
    frames = {"frames": [8, 32], "depths": [0.0], "rounds": 3}
    write(inside / "b ü", HEADER | {"evaluation": "visual-needle", "grid": frames}, ROW)
    several = {name: GRID[name] for name in ("lengths", "rounds")}
    write(inside / "several", HEADER | {"grid": several})
    write(inside / "earlier", {**HEADER, "grid": None, "config": GRID, "model": 1})
    write(inside / "odd", HEADER | {"grid": {"lengths": 5}}, ROW | {"score": float("nan")})
    write(inside / "damaged", HEADER, rest="{\n")
    write(inside / "ruler", HEADER | {"evaluation": "ruler"})
    write(inside / "none", [1])
    (inside / "empty").mkdir()
    write(root / "outside", HEADER)
    (inside / "link").symlink_to(root / "outside")
    (inside / "file").mkdir()
    (inside / "file" / "results.jsonl").symlink_to(root / "outside" / "results.jsonl")
    return inside


@pytest.fixture(scope="module")
def showing(start, folder):
    return start(evaluations=folder)


def test_needle_results_are_listed(showing, folder):
    data = showing.client.get("/v1/evaluations").json()["data"]
    listed = {each.pop("id"): each for each in data}
    assert set(listed) == {"a/needle", "b ü", "several", "earlier", "odd", "damaged"}
    path = folder / "a" / "needle" / "results.jsonl"
    assert listed["a/needle"] == {
        "evaluation": "needle",
        "model": "m",
        "rows": 2,
        "expected": 12,
        "updated": path.stat().st_mtime,
    }
    assert (listed["b ü"]["evaluation"], listed["b ü"]["expected"]) == ("visual-needle", 6)
    assert [listed[name]["expected"] for name in ("several", "earlier", "odd")] == [4, 12, None]
    assert listed["earlier"]["model"] == ""
    updated = [each["updated"] for each in data]
    assert updated == sorted(updated, reverse=True)


def test_rows_come_without_the_line_that_is_being_written(showing, folder):
    found = showing.client.get("/v1/evaluations/a/needle").json()
    assert found == {"header": HEADER, "rows": [ROW, ROW]}
    assert showing.client.get("/v1/evaluations/b ü").json()["rows"] == [ROW]
    write(folder / "grows", HEADER, ROW)
    assert len(showing.client.get("/v1/evaluations/grows").json()["rows"]) == 1
    write(folder / "grows", HEADER, *[ROW] * 5)
    listed = showing.client.get("/v1/evaluations").json()["data"]
    assert [each["rows"] for each in listed if each["id"] == "grows"] == [5]
    (folder / "grows" / "results.jsonl").unlink()
    assert showing.client.get("/v1/evaluations/grows").status_code == 404


@pytest.mark.parametrize(
    "name",
    [
        *("none", "empty", "a", "ruler", "damaged", "odd", "link", "file", "missing", "-", ""),
        *("a/needle/", "a//needle", "%2e%2e/outside", "a/..%2f../outside", "%00"),
        *("%2fetc", "a/needle/results.jsonl", "x" * 300, "%ff", "..%2finside/a/needle"),
    ],
)
@pytest.mark.parametrize("route", ["evaluations", "evaluations-prompt"])
def test_ids_of_no_results_are_not_found(showing, route, name):
    answer = showing.client.get(f"/v1/{route}/{name}?row=0")
    assert answer.status_code == 404
    assert "\n" not in answer.json()["error"]["message"]
    assert "inside" not in answer.json()["error"]["message"]


def test_results_in_the_folder_itself_have_an_id(start, tmp_path):
    write(tmp_path, HEADER, ROW)
    own = start(evaluations=tmp_path)
    assert [each["id"] for each in own.client.get("/v1/evaluations").json()["data"]] == ["-"]
    assert own.client.get("/v1/evaluations/-").json()["rows"] == [ROW]


def test_files_that_are_too_large_are_not_shown(start, tmp_path, monkeypatch):
    write(tmp_path / "a", HEADER, ROW)
    monkeypatch.setattr(evaluations, "MOST_BYTES", 10)
    own = start(evaluations=tmp_path)
    assert own.client.get("/v1/evaluations").json() == {"data": []}
    assert own.client.get("/v1/evaluations/a").status_code == 404


def test_without_a_folder_there_is_nothing(served, start, tmp_path):
    for running in (served, start(evaluations=tmp_path / "missing")):
        assert running.client.get("/v1/evaluations").json() == {"data": []}
        assert running.client.get("/v1/evaluations/a").status_code == 404


@pytest.mark.parametrize("config", [SINGLE, SEVERAL])
def test_the_prompt_of_a_row_is_built_again(start, drawing, tmp_path, config):
    evaluation = NeedleEvaluation(config, Subject.of_model(drawing))
    response, rows, prompts = Response(text="", prompt_tokens=1, completion_tokens=1), [], []
    for cell in evaluation.cells[::4] if config is SINGLE else evaluation.cells:
        question = evaluation.question(cell)
        row = evaluation.row(question, response) | {"context_length": cell.length}
        rows.append(row | {"prompt_sha256": digest(question)})
        prompts.append(question.message)
    other = rows[0] | {"prompt_sha256": "0" * 16}
    broken = [{}, other | {"context_length": "x"}, other | {"seed": None}]
    write(tmp_path / "own", evaluation.header(), *rows, other, *broken)
    elsewhere = evaluation.header() | {"haystack": {"sha256": "0" * 64}}
    write(tmp_path / "elsewhere", elsewhere, *rows)
    write(tmp_path / "visual", HEADER | {"evaluation": "visual-needle"}, ROW)
    showing = start(evaluations=tmp_path)

    def ask(name, row):
        return showing.client.get(f"/v1/evaluations-prompt/{name}", params={"row": row})

    assert [ask("own", number).json()["prompt"] for number in range(len(rows))] == prompts
    wanted = "built for another model or haystack; serve tiny-vision to see it"
    for name, row in (
        ("elsewhere", 0),
        *(("own", number) for number in range(len(rows), len(rows) + 4)),
    ):
        answer = ask(name, row)
        assert answer.status_code == 404
        assert wanted in answer.json()["error"]["message"]
    assert ask("own", 99).status_code == ask("visual", 0).status_code == 404
    assert ask("own", -1).json()["error"]["param"] == "row"
    assert ask("own", "x").status_code == 400
