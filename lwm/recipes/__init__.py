"""Recipes: functions that return all settings of a training run.

`lwm train NAME` runs one; options change single settings. Your own recipe is a function like these
in your own file: `lwm train my.py:name`.
"""

from lwm.recipes.find import RECIPES, Recipe, find_recipe
from lwm.recipes.small import debug, laptop_text, tiny_vision
from lwm.recipes.vqgans import vqgan_64, vqgan_256

__all__ = [
    "RECIPES",
    "Recipe",
    "debug",
    "find_recipe",
    "laptop_text",
    "tiny_vision",
    "vqgan_64",
    "vqgan_256",
]
