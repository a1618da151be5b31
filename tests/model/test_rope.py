import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lwm.model.config import LinearScaling, Rope, RopeScaling
from lwm.model.rope import inverse_frequencies, rotate, rotation

LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)


@pytest.mark.parametrize("head_dim", [8, 16, 128])
@pytest.mark.parametrize("theta", [10_000, 10_000_000, 50_000_000])
def test_tables_are_those_of_the_original(fixtures, head_dim, theta):
    given = np.load(fixtures / "rope_tables.npz")
    positions = jnp.asarray(given[f"dim{head_dim}.positions"], jnp.int32)[None]
    cos, sin = rotation(positions, Rope(theta=float(theta)), head_dim)
    wanted = given[f"dim{head_dim}.theta{theta}.fp32"]
    np.testing.assert_allclose(cos[0], wanted.real, atol=5e-5)
    np.testing.assert_allclose(sin[0], wanted.imag, atol=5e-5)


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    rope = Rope(theta=100.0)
    x, y = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

    def product(at, other):
        turned = [
            rotate(jnp.asarray(v), *rotation(jnp.array([[p]]), rope, 16))
            for v, p in ((x, at), (y, other))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(0, 0) == pytest.approx(float(np.sum(x * y)), rel=1e-5)
    assert product(7, 3) == pytest.approx(product(104, 100), rel=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 4), rel=1e-2)


def test_positions_of_a_million_tokens_stay_apart():
    cos, _ = rotation(jnp.arange(2**20 - 4096, 2**20)[None], Rope(theta=5e7), 128)
    assert len(np.unique(np.asarray(cos[0]), axis=0)) == 4096


def test_llama3_scaling_keeps_fast_and_divides_slow_frequencies():
    plain = Rope(theta=500_000.0)
    before = inverse_frequencies(plain, 128)
    after = inverse_frequencies(dataclasses.replace(plain, scaling=LLAMA3), 128)
    wavelengths = 2 * np.pi / before
    fast, slow = wavelengths < 8192 / 4, wavelengths > 8192
    np.testing.assert_array_equal(after[fast], before[fast])
    np.testing.assert_allclose(after[slow], before[slow] / 8, rtol=1e-6)
    between = ~fast & ~slow
    assert between.any()
    assert (after[between] < before[between]).all()
    assert (after[between] > before[between] / 8).all()


def test_linear_scaling_divides_all_frequencies():
    plain = Rope(theta=10_000.0)
    scaled = dataclasses.replace(plain, scaling=LinearScaling(factor=4.0))
    np.testing.assert_array_equal(
        inverse_frequencies(scaled, 128), inverse_frequencies(plain, 128) / 4
    )


def test_scalings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"low_freq_factor 4, which should be below .* 4"):
        dataclasses.replace(LLAMA3, low_freq_factor=4.0)
    with pytest.raises(ValueError, match="factor nan, no number above 0"):
        LinearScaling(factor=float("nan"))


@pytest.mark.torch
def test_llama3_scaling_is_that_of_transformers():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        head_dim=128,
        max_position_embeddings=131_072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    ours = inverse_frequencies(Rope(theta=500_000.0, scaling=LLAMA3), 128)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)
