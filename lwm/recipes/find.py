"""Recipes by name, also those in files of the user."""

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lwm.errors import UserError
from lwm.recipes import original
from lwm.recipes.curriculum import laptop_curriculum
from lwm.recipes.small import debug, laptop_text, tiny_vision
from lwm.recipes.vqgans import vqgan_64, vqgan_256
from lwm.train.config import Curriculum, Run
from lwm.train.vqgan.config import VQGANRun

Recipe = Callable[[], Run | Curriculum | VQGANRun]
RECIPES: dict[str, Recipe] = {
    "debug": debug,
    "laptop-text": laptop_text,
    "laptop-curriculum": laptop_curriculum,
    "tiny-vision": tiny_vision,
    **original.stages_of_lwm(),
    "lwm": original.lwm,
    "lwm-llama3": original.lwm_llama3,
    "vqgan-64": vqgan_64,
    "vqgan-256": vqgan_256,
}


def find_recipe(name: str) -> Recipe:
    """Returns a recipe by its name, or by file and function: `my.py:name`.

    Raises:
        UserError: There is no such recipe, file or function.
    """
    if name in RECIPES:
        return RECIPES[name]
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise UserError(
            f"no recipe is called {name!r}; there are {', '.join(RECIPES)}, and functions in files "
            "of your own: my.py:name"
        )
    return _in_file(Path(file), function)


def _in_file(path: Path, name: str) -> Recipe:
    module = _module(path)
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(
            f"{path} has no function {name!r}; it has {', '.join(_functions(module)) or 'none'}"
        )
    return found


def recipes_in(path: Path) -> dict[str, Recipe]:
    """Returns the functions of a file of the user that take no arguments, by `my.py:name`.

    Raises:
        UserError: The file cannot be run, or has none.
    """
    found = {
        f"{path}:{name}": function
        for name, function in _functions(_module(path)).items()
        if not name.startswith("_") and not inspect.signature(function).parameters
    }
    if not found:
        raise UserError(f"{path} has no function without arguments, which a recipe is")
    return found


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("lwm_user_recipes", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} fails: {type(error).__name__}: {error}") from None
    return module


def _functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Returns the functions that a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }
