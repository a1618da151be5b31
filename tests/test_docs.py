"""Runs the commands of README and docs, from a folder that holds what a clone holds."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lwm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
code_map = importlib.import_module("code_map")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# These make the environment that the tests run in, or wait for somebody to type.
SKIPPED = ("python3 -m venv", ".venv/bin/pip", ".venv/bin/pytest", "lwm chat ./my-model")


def blocks(language):
    for page in PAGES:
        fenced = re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)
        for number, text in enumerate(fenced, start=1):
            yield f"{page.stem} {number}", text


def commands():
    """Yields the steps of commands; those that begin with one and the same step share it."""
    steps, names = {}, {}
    for name, text in blocks("sh"):
        for line in text.splitlines():
            command = line.split("  #")[0].strip()
            if command and not command.startswith(SKIPPED):
                first, *others = command.split(" && ")
                names.setdefault(first, f"{name}: {command[:50]}")
                known = steps.setdefault(first, [first])
                known += [step for step in others if step not in known]
    yield from ((names[first], found) for first, found in steps.items())


@pytest.fixture
def clone(tmp_path):
    for name in ("lwm", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(arguments, clone, **options):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # A real model costs more to run than to compile, and whoever reads the docs has one device.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"PATH": path} | options.pop("env", {})
    return subprocess.run(
        arguments,
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def few_steps(command):
    """Returns flags for a command that takes a few steps of training, and compiles for longer."""
    if "lwm train " not in command or "smollm2" in command:
        return {}
    flags = os.environ["XLA_FLAGS"].split()
    return {"XLA_FLAGS": " ".join(flag for flag in flags if "device_count" not in flag)}


@pytest.mark.network
@pytest.mark.parametrize("steps", [pytest.param(steps, id=name) for name, steps in commands()])
def test_command_runs(steps, clone):
    for step in steps:
        if step.startswith("python benchmarks/attention.py"):
            step += " --lengths 256 --head-dims 32 --repeats 1"
        done = run(["bash", "-c", step], clone, env=few_steps(step))
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.network
@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in blocks("python")])
def test_example_runs(text, clone):
    done = run([sys.executable, "-c", text], clone, env={"PYTHONPATH": str(clone)})
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_pages_are_in_the_navigation_and_links_lead_somewhere():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert page.name in navigation
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", code_map.PAGES)
def test_what_is_made_from_the_code_is_current(page):
    text = (ROOT / page).read_text()
    assert text == code_map.current(ROOT / page), "run python tools/code_map.py"


def test_every_module_has_a_caption():
    for line in (*code_map.modules().splitlines(), *code_map.folders().splitlines()):
        assert line.startswith("```") or len(line.split(maxsplit=1)) == 2, line


def test_the_reference_has_all_public_names_and_configurations():
    named = set(
        re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    )
    assert {f"lwm.{name}" for name in lwm.__all__ if name != "__version__"} <= named
    for module in ("train.config", "train.vqgan.config", "data.format", "eval.needle.config"):
        path = ROOT / "lwm" / f"{module.replace('.', '/')}.py"
        for name in re.findall(r"^class ([A-Z]\w+)", path.read_text(), re.MULTILINE):
            assert f"lwm.{module}.{name}" in named
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


OTHERS = "exporting", "clusters"
"""Pages with commands of other programs, in blocks of text."""


def test_every_command_and_option_of_the_docs_exists():
    # Those pages have LWM's own flags, and the harness's.
    pages = [page for page in PAGES if page.stem not in ("coming-from-lwm", "harness")]
    text = "\n".join(page.read_text() for page in pages if page.stem not in OTHERS)
    for page in OTHERS:
        text += re.sub(
            r"```text\n.*?```", "", (ROOT / f"docs/{page}.md").read_text(), flags=re.DOTALL
        )
    commands = """
        chat, demo, models, plot, plan, convert, tokenize, data show, data check, data tokenize,
        data needles, data qa, generate text, generate image, generate video, eval all,
        eval compare, eval needle, eval perplexity, eval ruler, eval visual-needle, eval vqgan,
        eval vision, eval qa, eval adherence, train debug, train tiny-vision, train vqgan-64,
        train laptop-curriculum, plan lwm, serve
    """
    # One process: to import all for each would take most of the time.
    code = """
import contextlib, sys
from lwm.cli.app import main
for command in sys.argv.pop().split(","):
    sys.argv[1:] = [*command.split(), "--help-all"]
    with contextlib.suppress(SystemExit):
        main()
"""
    # Room for the longest names on one line.
    shown = run([sys.executable, "-c", code, commands], ROOT, env={"COLUMNS": "300"}).stdout
    # An option begins a line of a box; further names of it follow after commas.
    there = {"--help-all", *re.findall(r"(?:│ |, )(--[\w.-]*\w)", shown)}
    assert {"--max-tokens", "--training.optimizer.schedule.peak", "--data.no-shuffle"} <= there
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text))
    assert {name for name in named if "_" not in name} - there == set()
