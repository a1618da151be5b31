"""The benchmark of pods: its cases and tables, and that nothing is compiled twice."""

import json
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh, AxisType

from lwm.recipes import RECIPES
from lwm.sharding import AXES
from lwm.train.abstract import require_trainable
from lwm.train.planned import planned
from lwm.train.vqgan.config import VQGANRun

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pods():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import pods

        yield pods


def line(case, program="update", **facts):
    sizes = {"arguments": 2**30, "temporaries": 3 * 2**30, "peak": 4 * 2**30, "seconds": 9.0}
    return {"case": case, "program": program} | sizes | facts


def cells(table):
    titles, _, *lines = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table)
    return [dict(zip(titles, each, strict=True)) for each in lines]


def test_every_stage_of_every_recipe_is_compiled_and_fits_its_slice(pods):
    cases = pods.cases()
    assert len({case.name for case in cases}) == len(cases)
    keys = {case.key for case in cases}
    for name, recipe in RECIPES.items():
        if isinstance(made := recipe(), VQGANRun):
            continue
        for case in pods.of_recipe(name, made):
            assert case.key in keys, case.name
        assert len(list(pods.of_recipe(name, made))) == len(planned(name, made))
    explicit = (AxisType.Explicit,) * len(AXES)
    for case in cases:
        mesh = AbstractMesh(pods.sizes_of(case), AXES, axis_types=explicit)
        require_trainable(case.run, case.model, mesh)


def test_a_table_has_the_last_lines_in_the_order_of_cases_and_why_some_have_none(pods):
    first, second, third = (case.name for case in pods.cases()[:3])
    refused = {"case": second, "program": "update", "refused": "Used 82.57G of 30.75G hbm."}
    table = pods.table([line(third), line(first, peak=1), line(first), refused], "update")
    *rows, blank, note = table.splitlines()
    one, none, other = cells(rows)
    assert [each["case"] for each in (one, none, other)] == [first, second, third]
    assert (one["arguments"], one["temporaries"], one["peak"]) == ("1.00", "3.00", "4.00")
    assert one["compiled in"] == "9 s"
    assert float(one["difference"].rstrip("%")) < 0
    assert none["peak"] == "refused"
    assert (blank, note) == ("", f"{second}: Used 82.57G of 30.75G hbm.")


def test_programs_that_are_there_are_not_compiled_again(pods, monkeypatch, tmp_path, capsys):
    compiled = []

    def apart(case, program, minutes):
        compiled.append((case.name, program, minutes))
        return line(case.name, program)

    monkeypatch.setattr(pods, "apart", apart)
    first, second = (case.name for case in pods.cases()[:2])
    out, page = tmp_path / "pods.jsonl", tmp_path / "page.md"
    page.write_text(f"before\n{pods.BEGINS}\nold\n{pods.ENDS}\nafter\n")
    for programs in (("update",), ("update", "init")):
        options = pods.Options(out=out, docs=page, only=(first, second), programs=programs)
        pods.main(options)
    assert [each[:2] for each in compiled] == [
        (first, "update"),
        (second, "update"),
        (first, "init"),
        (second, "init"),
    ]
    assert [json.loads(each)["program"] for each in out.read_text().splitlines()].count("init") == 2
    assert "## init" in out.with_suffix(".md").read_text()
    before, begins, *table, ends, after = page.read_text().splitlines()
    assert (before, begins, ends, after) == ("before", pods.BEGINS, pods.ENDS, "after")
    assert [each["case"] for each in cells([row for row in table if row])] == [first, second]
    with pytest.raises(SystemExit, match="no case is called nothing"):
        pods.main(pods.Options(out=out, only=("nothing",)))


def test_estimates_are_near_what_the_compiler_said(pods):
    """Of all kept results; those of cases that are no more should go."""
    kept = pods.read(ROOT / "benchmarks" / "results" / "pods-tpu.jsonl")
    cases = {case.name: case for case in pods.cases()}
    lines = {(line["case"], line["program"]): line for line in kept if "peak" in line}
    assert lines
    for (name, program), line in lines.items():
        if line["peak"] is None:
            assert line["remat"] == "offload"  # of others, the compiler says it
        elif program != "init":
            estimate = pods.estimate(cases[name], program)
            assert estimate == pytest.approx(line["peak"], rel=0.15), (name, program)
