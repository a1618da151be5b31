"""`lwm plan RECIPE`: estimates of every stage, and programs for a slice that is not there."""

import re

import pytest

from lwm.cli.app import main
from lwm.cli.plan_recipe import PlanOptions, plan_recipe
from lwm.recipes import RECIPES


def rows(text):
    """Reads a table: cells by title, for each line up to the first blank one."""
    titles, *lines = (
        re.split(r"  +", line) for line in text.strip().partition("\n\n")[0].splitlines()
    )
    return [dict(zip(titles, line, strict=True)) for line in lines]


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["lwm", "plan", *arguments])
    main()


def test_every_stage_of_a_curriculum_has_a_line(capsys):
    plan_recipe("lwm", RECIPES["lwm"](), PlanOptions(devices=256, memory=50.0))
    found = rows(capsys.readouterr().out)
    assert [each["stage"] for each in found][4:6] == ["text-1m", "1k"]
    assert found[4]["mesh"] == "1,4,16,4"
    for each in found:
        parts = (float(each[part]) for part in ("state", "saved", "work"))
        total = float(each["update"])
        assert sum(parts) == pytest.approx(total, rel=0.02)
        assert each["fits"] == ("yes" if total * 2**30 <= 50e9 else "no")


def test_options_of_the_recipe_change_the_plan(capsys, monkeypatch):
    def planned(*options):
        run(monkeypatch, "lwm-text-1m", "--mesh", "1,4,16,4", *options)
        (found,) = rows(capsys.readouterr().out)
        return found

    offloaded, kept = (planned("--compute.remat", each) for each in ("offload", "attention"))
    assert (offloaded["host"], offloaded["saved"]) == (kept["saved"], kept["host"])
    assert float(kept["host"]) == 0
    few, many = planned(), planned("--data.rows", "8")
    assert (few["rows"], many["rows"]) == ("4", "8")
    assert float(many["saved"]) == pytest.approx(2 * float(few["saved"]), rel=0.01)


def test_a_model_of_a_recipe_s_name_is_pointed_out(capsys, monkeypatch):
    run(monkeypatch, "lwm-text-1m", "--devices", "64")
    assert capsys.readouterr().err == "lwm: this is the recipe; the model is LWM-Text-1M\n"


def test_stages_and_vision_of_recipes_for_a_laptop(capsys):
    plan_recipe("laptop-curriculum", RECIPES["laptop-curriculum"](), PlanOptions(only=("vision",)))
    (found,) = rows(capsys.readouterr().out)
    assert (found["stage"], found["tokens"]) == ("vision", "4,096")


MISTAKES = [
    (("vqgan-64",), "vqgan-64 trains a VQGAN; plans are of language models"),
    (("lwm-text-1m",), "'1,-1,16,4' has an open size; give --devices"),
    (("lwm-text-1m", "--devices", "100"), "needs a multiple of 64 devices"),
    (("debug", "--mesh", "3,1,1,1"), "8 rows of the batch do not divide by dp 3"),
    (("debug", "--mesh", "1,1,4,1"), "2 key/value heads do not divide by tp 4"),
    (("debug", "--devices", "0"), "--devices is 0, but must be above 0"),
    (("debug", "--mfu", "1.5"), "--mfu is 1.5, but must be above 0 and at most 1"),
    (("debug", "--topology", "v4:2x2x1", "--memory", "3"), "has its own memory; leave it out"),
    (("debug", "--topology", "v4:2x2"), "along 3 sides"),
    (("lwm", "--only", "text-2m"), "text-2m is no stage of lwm; there are text-32k, text-128k"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES)
def test_mistakes_end_in_one_line(monkeypatch, capsys, arguments, says):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.tpu
def test_programs_of_a_recipe_compile_for_a_slice(monkeypatch, capsys):
    pytest.importorskip("libtpu")
    options = ("--mesh", "1,1,2,2", "--programs", "update", "reading")
    run(monkeypatch, "debug", "--topology", "v4:2x2x1", *options)
    shown = capsys.readouterr()
    found = {each["program"]: each for each in rows(shown.out)}
    assert list(found) == ["update", "reading"]
    for each in found.values():
        assert each["fits"] == "yes"
        assert 0 < float(each["arguments"]) < float(each["peak"]) < 0.1
        assert float(each["FLOPs"]) > 0
    assert "collective-permute" in shown.out
    assert "4 chips TPU v4, of 30.75" in shown.out
