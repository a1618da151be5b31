"""RoPE's base for longer contexts."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.model.config import ModelOverrides, Rope, RopeScaling, preset
from lwm.model.rope import inverse_frequencies

LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)


def stretched(config, **given):
    return ModelOverrides(**given).applied(config)


def test_lwm_s_table_is_that_of_its_stages():
    base = preset("7b")
    for context, theta in (
        (4_096, 1e4),
        (32_768, 1e6),
        (40_000, 1e7),
        (131_072, 1e7),
        (262_144, 1e7),
        (524_288, 2.5e7),
        (1_048_576, 5e7),
    ):
        config = stretched(base, context=context, stretch="lwm")
        assert (config.rope.theta, config.max_context) == (theta, context)
    with pytest.raises(UserError, match="ends at 1,048,576 tokens, and the context is 1,048,577"):
        stretched(base, context=1_048_577, stretch="lwm")


def test_the_ntk_rule_keeps_the_angle_of_the_slowest_frequency_over_the_context():
    base = dataclasses.replace(preset("7b"), max_context=4096, rope=Rope(theta=1e4, scaling=None))
    config = stretched(base, context=4 * 4096, stretch="ntk")
    slowest = [inverse_frequencies(one.rope, 128)[-1] for one in (base, config)]
    np.testing.assert_allclose(slowest[1] * 4, slowest[0], rtol=1e-5)
    np.testing.assert_array_equal(inverse_frequencies(config.rope, 128)[0], jnp.ones(()))
    assert stretched(base, context=1024, stretch="ntk").rope.theta == base.rope.theta


def test_scaling_is_kept_or_dropped():
    base = dataclasses.replace(preset("7b"), rope=Rope(theta=5e5, scaling=LLAMA3))
    assert stretched(base, context=131_072, stretch="lwm").rope.scaling == LLAMA3
    dropped = stretched(base, context=131_072, stretch="lwm", rope_scaling="none")
    assert dropped.rope == Rope(theta=1e7)


@pytest.mark.parametrize("more", [{}, {"context": 8192, "theta": 1e6}])
def test_what_contradicts_a_rule_is_refused(more):
    with pytest.raises(UserError, match="give context, and leave out theta"):
        ModelOverrides(stretch="lwm", **more)
