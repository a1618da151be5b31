"""Recipes of pods at their real size: shapes of weights, updates, reading and decoding."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec as P

from lwm.data.example import MODALITIES, Batch
from lwm.generate.decoding import BURST, burst
from lwm.generate.pages import LONG
from lwm.generate.slots import Slots
from lwm.model.llama import Llama, _extend_block, check_mesh
from lwm.model.pool import PAGE, PagePool, Place, table_width
from lwm.recipes import RECIPES
from lwm.sharding import ACTS, AXES, ROW, ROWS, TOKENS, make_mesh
from lwm.train.config import Curriculum
from lwm.train.cost import cost_of, costs
from lwm.train.optimizer import build_optimizer
from lwm.train.step import TrainState, TrainStep

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
    found = [cost_of(run, model) for run, model in stages(name)]
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
    sizes = list(map(int, run.mesh.split(",")))
    chips = _VISION_CHIPS if model.tokens.vision else _TEXT_CHIPS
    sizes[sizes.index(-1)] = chips // abs(math.prod(sizes))
    assert math.prod(sizes) == chips
    assert run.data.rows % (sizes[0] * sizes[1]) == 0
    mesh = AbstractMesh(tuple(sizes), AXES, axis_types=(AxisType.Explicit,) * len(AXES))
    check_mesh(model, mesh)
    with jax.sharding.use_abstract_mesh(mesh):
        trains(run, model, mesh)
        generates(run, model, mesh)


def trains(run, model, mesh):
    optimizer = build_optimizer(run.training.optimizer, run.training.steps)

    def start():
        return TrainState.start(Llama.init(model, run.compute, key=jr.key(0)), optimizer)

    given = (run.training.accumulate, run.data.rows)
    shape, spec = (*given, run.data.packing.length), P(None, *TOKENS)
    ids = of(mesh, *shape, spec=spec)
    batch = Batch(
        tokens=ids,
        targets=ids,
        segments=ids,
        positions=ids,
        weights=of(mesh, *shape, spec=spec, dtype=jnp.float32),
        counts=of(mesh, *given, len(MODALITIES), spec=P(None, *ROWS), dtype=jnp.float32),
    )
    index = of(mesh, shape[-1], spec=P())
    step = TrainStep(optimizer, run.training.loss)
    made = jax.eval_shape(start)
    state, metrics = jax.eval_shape(step, made, batch, index)
    assert jax.tree.structure(state) == jax.tree.structure(made)
    assert metrics.loss.shape == ()


def generates(run, model, mesh):
    """One row for each group of devices."""
    rows = mesh.shape["dp"] * mesh.shape["fsdp"]
    per_device = -(-model.max_context // (PAGE * mesh.shape["sp"])) + 1
    dtype = run.compute.dtype
    weights = jax.eval_shape(lambda: Llama.init(model, run.compute, key=jr.key(0)).for_generation())
    pool = jax.eval_shape(lambda: PagePool.empty(model, dtype, per_device=per_device))
    table = of(mesh, rows, table_width(model.max_context), spec=ROWS)
    place = Place(table, *[of(mesh, rows, spec=ROW)] * 2)
    states = of(mesh, rows, LONG, model.dim, spec=ACTS, dtype=dtype)
    turn = of(mesh, rows, LONG, model.head_dim // 2, spec=ACTS, dtype=jnp.float32)
    read, _ = jax.eval_shape(
        _extend_block, weights.blocks[0], states, (turn, turn), pool.layers[0], place
    )
    assert read.shape == states.shape
    slots = Slots(weights, make_mesh(), rows, grammar=None, stop_places=8)
    seen = of(mesh, *slots._seen.shape, spec=P(None, None), dtype=bool)
    inputs = slots._rows, BURST, slots._inputs
    found = jax.eval_shape(lambda *given: burst(*given, grammar=None), weights, pool, seen, *inputs)
    assert found.ids.shape == (rows, BURST)


def of(mesh, *shape, spec, dtype=jnp.int32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
