"""Memory of a training step, estimated: its parts, and what each setting changes."""

import dataclasses
from typing import Any

import pytest
from jax.sharding import AbstractMesh, AxisType

from lwm.model.config import Compute
from lwm.ops import ring
from lwm.plan.program import bytes_of_a_device
from lwm.plan.training import LONG, training_need
from lwm.recipes import RECIPES
from lwm.sharding import AXES
from lwm.tokens import TokenSpace
from lwm.train.abstract import training_programs
from lwm.train.config import Run
from lwm.train.planned import memory_of

MESH = (1, 2, 4, 2)


@pytest.fixture(scope="module")
def large():
    run = RECIPES["lwm-text-1m"]()
    assert isinstance(run, Run)
    assert run.model is not None
    return run, run.model


def need(large, *, mesh=MESH, rows=4, length=2**20, accumulate=1, ids=32_000, **compute):
    config = dataclasses.replace(large[1], tokens=TokenSpace(text=ids))
    settings: dict[str, Any] = {"remat": "full", "mlp_chunk": 1024} | compute
    given = {"rows": rows, "length": length, "mesh": mesh, "accumulate": accumulate}
    return training_need(config, Compute(**settings), **given)


@pytest.mark.parametrize("types", [("float32", "float32"), ("bfloat16", "float32")])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_optimizer_are_those_of_the_step(large, types, tied):
    run, model = large
    model = dataclasses.replace(model, tokens=TokenSpace.of(3000, 500), tie_embeddings=tied)
    first, second = types
    optimizer = dataclasses.replace(
        run.training.optimizer, moment_dtype=first, second_moment_dtype=second
    )
    training = dataclasses.replace(run.training, optimizer=optimizer)
    run = dataclasses.replace(run, training=training)
    mesh = AbstractMesh(MESH, AXES, axis_types=(AxisType.Explicit,) * len(AXES))
    _, update = training_programs(run, model, mesh)
    state = update.arguments[1]
    assert memory_of(run, model, MESH).state == pytest.approx(bytes_of_a_device(state), rel=1e-3)


def test_saved_inputs_of_layers_divide_over_the_whole_mesh(large):
    config = large[1]
    tokens = 4 * 2**20 / (2 * 4 * 2)
    assert need(large).saved == 4 * config.num_layers * tokens * config.dim
    assert need(large, dtype="bfloat16").saved * 2 == need(large).saved
    for mesh in ((2, 2, 4, 2), (1, 4, 4, 2), (1, 2, 8, 2), (1, 2, 4, 4)):
        assert need(large, mesh=mesh).saved * 2 == need(large).saved


def test_what_is_kept_grows_with_what_is_not_computed_again(large):
    saved = [need(large, remat=each).saved for each in ("full", "attention", "dots", "none")]
    assert saved == sorted({*saved})
    offloaded, attention = need(large, remat="offload"), need(large, remat="attention")
    assert (offloaded.host, offloaded.saved) == (attention.saved, 0)
    assert attention.host == 0


def test_pieces_bound_the_work(large):
    whole, pieces = need(large, mlp_chunk=None), need(large)
    columns = large[1].mlp_dim * 4 // 4
    tokens = 4 * 2**20 / (2 * 2)
    assert whole.work - pieces.work == pytest.approx(3 * columns * (tokens - 2 * 1024), rel=1e-6)
    short = {"length": 2048, "mesh": (1, 4, 1, 1), "ids": 256_000}
    logits = need(large, loss_chunk=1024, **short).work - need(large, loss_chunk=512, **short).work
    assert logits == pytest.approx(3 * 4 * 512 * 256_000, rel=0.01)


def test_gradients_of_several_batches_are_added_up(large):
    config = large[1]
    weights = need(large).state / 12
    twice = need(large, accumulate=2).work - need(large).work
    assert twice == pytest.approx(4 * weights, rel=1e-6)
    assert config.num_layers == 32


def test_attention_is_differentiated_head_by_head_from_the_length_that_the_ring_has():
    assert LONG == ring._LONG
