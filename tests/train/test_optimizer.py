"""Schedules, and which weights decay."""

from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lwm.errors import UserError
from lwm.train.config import AdamW, Schedule
from lwm.train.optimizer import build_optimizer, build_schedule, matrices


def rates(steps=100, **changes):
    build = build_schedule(Schedule(peak=1.0, warmup=10, **changes), steps)
    return np.array([build(step) for step in range(steps)])


def test_shapes():
    for shape in ("constant", "cosine", "wsd"):
        end = 0.0 if shape == "constant" else 0.1
        found = rates(shape=shape, end=end, decay=20 if shape == "wsd" else 0)
        np.testing.assert_allclose(found[:11], np.arange(11) / 10, rtol=1e-6)
    np.testing.assert_array_equal(rates(shape="constant")[10:], 1)
    for shape in ("constant", "cosine"):
        raised = rates(shape=shape, start=0.5)
        np.testing.assert_allclose(raised[:11], 0.5 + np.arange(11) / 20, rtol=1e-6)
    cosine = rates(end=0.1)[10:]
    expected = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(90) / 90)) / 2
    np.testing.assert_allclose(cosine, expected, rtol=1e-5)
    stable = rates(shape="wsd", end=0.1, decay=20)
    np.testing.assert_array_equal(stable[10:81], 1)
    np.testing.assert_allclose(stable[80:], 1 - 0.9 * np.arange(20) / 20, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        UserError, match="warm-up of 10 steps and a decay of 90 do not fit into 100"
    ):
        rates(shape="wsd", decay=90)
    with pytest.raises(UserError, match=r"start 2.0, must be from 0 to the peak, 1.0; change both"):
        rates(start=2.0)


def test_moments_are_stored_as_asked():
    """The second in bfloat16 gives nearly the same updates; where it would stand still, it is no
    choice."""
    weights: Any = {"w": jnp.linspace(-1, 1, 64)}
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    results = []
    for dtype in dtypes:
        config = AdamW(schedule=Schedule(warmup=1, shape="constant"), second_moment_dtype=dtype)
        optimizer = build_optimizer(config, 50)
        state, updated = optimizer.init(weights), weights
        for number in range(20):
            gradients = jax.tree.map(lambda w, n=number: jnp.sin(w * 9 + n), updated)
            updates, state = optimizer.update(gradients, state, updated)
            updated: Any = optax.apply_updates(updated, updates)
        assert optax.tree.get(cast(Any, state), "nu")["w"].dtype == dtype
        results.append(np.asarray(updated["w"] - weights["w"]))
    assert not np.array_equal(results[0], results[1])
    assert np.linalg.norm(results[0] - results[1]) < 0.01 * np.linalg.norm(results[0])
    with pytest.raises(UserError, match=r"never changes with b2 0\.999"):
        AdamW(second_moment_dtype="bfloat16", b2=0.999)


def test_norms_and_biases_do_not_decay(mesh, tiny, init):
    model = init(tiny(num_heads=16, qkv_bias=True, qk_norm=True))
    decays = matrices(model)
    kept = {
        jax.tree_util.keystr(path, simple=True, separator=".").split(".")[-1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(decays)
        if leaf
    }
    assert kept == {"embedding", "head", "wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"}
