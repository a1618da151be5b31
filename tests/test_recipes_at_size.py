"""Recipes of pods at their real size: shapes of weights, updates, reading and decoding."""

import dataclasses
import math
import re
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from lwm.generate.abstract import generation_programs
from lwm.generate.decoding import BURST
from lwm.generate.pages import LONG
from lwm.plan.program import used
from lwm.recipes import RECIPES
from lwm.sharding import AXES
from lwm.train.abstract import training_programs
from lwm.train.config import Curriculum
from lwm.train.cost import cost_of, costs

PODS = tuple(name for name in RECIPES if name.startswith("lwm"))
_TEXT_CHIPS, _VISION_CHIPS = 256, 512
"""TPU v4-512 and v4-1024, whose numbers count the cores."""

_UNITS = (r"B\s+tokens", " FLOPs", " (?:chip-hours|hours)")


def stages(name):
    """Yields settings and shape of each stage of a recipe."""
    recipe: Any = RECIPES[name]()
    if not isinstance(recipe, Curriculum):
        yield recipe, recipe.model
        return
    first: Any = recipe.stages[0].run.model
    found = costs(recipe, first)
    for stage, cost in zip(recipe.stages, found, strict=True):
        yield stage.run, cost.model


@pytest.mark.parametrize(
    ("name", "stage"), [("lwm-text-1m", 0), ("lwm-chat-1m", 0), ("lwm-llama3", 4)]
)
def test_a_recipe_of_each_shape_trains_reads_and_decodes_at_its_size(name, stage):
    can_be_run(*list(stages(name))[stage])


@pytest.mark.slow
def test_all_recipes_train_read_and_decode_at_their_size():
    for name in PODS:
        for run, model in stages(name):
            can_be_run(run, model)


@pytest.mark.parametrize("name", PODS)
def test_recipes_state_what_they_cost(name):
    """Tokens, operations and hours, in docstrings that are written by hand."""
    found = [
        dataclasses.replace(cost_of(run, model), dtype="bfloat16") for run, model in stages(name)
    ]
    doc = RECIPES[name].__doc__
    assert doc is not None
    numbers = [re.findall(rf"([\d.,]+e?\d*){unit}", doc)[0] for unit in _UNITS]
    stated = [float(number.replace(",", "")) for number in numbers]
    counted = [
        sum(cost.tokens for cost in found) / 1e9,
        sum(cost.flops for cost in found),
        sum(cost.chip_hours("TPU v4") or 0 for cost in found),
    ]
    assert stated == pytest.approx(counted, rel=0.04)


def can_be_run(run, model):
    """One update of the batch, and one row for each group of devices."""
    sizes = list(map(int, run.mesh.split(",")))
    chips = _VISION_CHIPS if model.tokens.vision else _TEXT_CHIPS
    sizes[sizes.index(-1)] = chips // abs(math.prod(sizes))
    assert math.prod(sizes) == chips
    mesh = AbstractMesh(tuple(sizes), AXES, axis_types=(AxisType.Explicit,) * len(AXES))
    init, update = training_programs(run, model, mesh)
    reading, decoding = generation_programs(model, run.compute, mesh)
    with used(mesh):
        state, metrics = update.traced()
        assert jax.tree.structure(state) == jax.tree.structure(update.arguments[1])
        assert jax.tree.structure(init.traced()) == jax.tree.structure(state.model)
        assert metrics.loss.shape == ()
        read, _ = reading.traced()
        assert read.shape == (sizes[0] * sizes[1], LONG, model.dim)
        assert decoding.traced().ids.shape == (sizes[0] * sizes[1], BURST)
