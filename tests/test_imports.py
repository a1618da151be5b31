"""Modules import each other openly, and modules of settings import quickly."""

import ast
import subprocess
import sys

import pytest

from lwm.files import ASSETS

PACKAGE = ASSETS.parent
BY_NAME = {"__init__.py", "renamed.py"}
"""Files that import modules of the package by name: public names at first use, and old names."""
LIGHT = (
    "data/example.py",
    "data/format.py",
    "errors.py",
    "eval/needle/prompts.py",
    "files.py",
    "hub/catalog.py",
    "recipes/find.py",
    "renamed.py",
    "sampling_params.py",
    "tokenizer/template.py",
    "tokens.py",
)
"""Modules that a command line needs for its help, and a server before it has a device."""
HEAVY = {
    *("cli/demo.py", "cli/demo_vision.py", "cli/plan_recipe.py", "cli/samples.py"),
    "cli/train_plan.py",
}
"""Parts of commands that are imported when they run."""


def path_of(file):
    return file.relative_to(PACKAGE).as_posix()


def module_of(path):
    return "lwm." + path.removesuffix(".py").replace("/", ".")


def test_no_module_is_imported_by_its_name_as_text():
    """The import contract reads import statements, so that an import by name would pass by it."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                is_name = node.value.startswith("lwm.") and all(
                    part.isidentifier() for part in node.value.split(".")
                )
                if is_name and path_of(file) not in BY_NAME:
                    found.append(f"{path_of(file)}:{node.lineno} {node.value}")
    assert not found


@pytest.mark.parametrize("library", ["jax", "huggingface_hub"])
def test_light_modules_do_without(library):
    found = (*PACKAGE.rglob("*config*.py"), *PACKAGE.glob("cli/[a-z]*.py"))
    paths = {*LIGHT, *map(path_of, found)} - HEAVY
    modules = [module_of(path) for path in sorted(paths)]
    assert len(modules) > 20
    code = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        f"    assert {library!r} not in sys.modules, name\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert not run.returncode, run.stderr
