"""Schedules, and which weights decay."""

import jax
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.train.optimizer import Schedule, matrices


def rates(steps=100, **changes):
    build = Schedule(peak=1.0, warmup=10, **changes).build(steps)
    return np.array([build(step) for step in range(steps)])


def test_courses():
    for course in ("constant", "cosine", "wsd"):
        found = rates(course=course, end=0.1, decay=20 if course == "wsd" else 0)
        np.testing.assert_allclose(found[:11], np.arange(11) / 10, rtol=1e-6)
    np.testing.assert_array_equal(rates(course="constant")[10:], 1)
    cosine = rates(end=0.1)[10:]
    expected = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(90) / 90)) / 2
    np.testing.assert_allclose(cosine, expected, rtol=1e-5)
    stable = rates(course="wsd", end=0.1, decay=20)
    np.testing.assert_array_equal(stable[10:81], 1)
    np.testing.assert_allclose(stable[80:], 1 - 0.9 * np.arange(20) / 20, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="warm-up of 10 steps and a fall of 90 do not fit into 100"):
        rates(course="wsd", decay=90)


def test_norms_and_biases_do_not_decay(mesh, tiny, init):
    model = init(tiny(num_heads=16, qkv_bias=True, qk_norm=True))
    decays = matrices(model)
    kept = {
        jax.tree_util.keystr(path, simple=True, separator=".").split(".")[-1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(decays)
        if leaf
    }
    assert kept == {"embedding", "head", "wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"}
