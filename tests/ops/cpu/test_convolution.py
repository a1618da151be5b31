"""Convolutions by other ways than XLA's, against XLA's: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lwm.ops.cpu import convolution
from lwm.ops.cpu.convolution import (
    convolve,
    convolve_by_differences,
    convolve_by_rows,
    convolve_by_tiles,
    convolve_doubled,
    convolve_halved,
    convolve_halved_by_pairs,
)
from lwm.sharding import AXES, make_mesh, manual, on_mesh

plain = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


def plain_doubled(x, kernel):
    return plain(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel)


def plain_halved(x, kernel):
    return plain(x, kernel, window_strides=(2, 2), padding=((0, 1), (0, 1)))


@pytest.fixture
def fast_at_any_size(monkeypatch):
    """Small frames of few channels take the ways that are otherwise only for large ones."""
    monkeypatch.setattr(convolution, "_WIDE", 1)
    monkeypatch.setattr(convolution, "_MANY_PIXELS", 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


def draw(*shape, outputs=24, side=3, dtype="float32"):
    """Pixels, and a kernel whose outputs have a variance of about one."""
    # A frame of one row meets a third of the kernel: a deviation of 0.58 is expected, not 1.
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(side, side, shape[3], outputs)) / (side * shape[3] ** 0.5)
    return jnp.asarray(rng.normal(size=shape), dtype), jnp.asarray(kernel, dtype)


@pytest.mark.parametrize("shape", [(2, 13, 10, 16), (1, 1, 3, 16), (3, 12, 11, 16)])
@pytest.mark.parametrize(
    ("fast", "wanted"),
    [
        (convolve_by_tiles, plain),
        (convolve_by_rows, plain),
        (convolve_by_differences, plain_doubled),
    ],
)
def test_other_ways_are_xlas(fast, wanted, shape):
    x, kernel = draw(*shape)
    y = jax.jit(fast)(x, kernel)
    assert np.std(y) > 0.5
    np.testing.assert_allclose(y, wanted(x, kernel), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 14, 10, 16), (1, 2, 2, 16)])
def test_halving_by_pairs_is_xlas(shape):
    x, kernel = draw(*shape)
    y = jax.jit(convolve_halved_by_pairs)(x, kernel)
    np.testing.assert_allclose(y, plain_halved(x, kernel), atol=1e-5)


@pytest.mark.parametrize("size", [8, 32])
def test_tiles_stay_exact_over_many_channels(size):
    x, kernel = draw(1, size, size, 64, outputs=64)
    y = jax.jit(convolve_by_tiles)(x, kernel)
    with jax.enable_x64(True):
        exact = plain(x.astype(jnp.float64), kernel.astype(jnp.float64))
        error = np.abs(np.asarray(exact) - y)
    assert error.max() < 2e-5
    assert error.mean() < 2e-6


@pytest.mark.parametrize("fast", [convolve_by_rows, convolve_by_differences])
def test_bfloat16_is_rounded_once_or_twice(fast):
    x, kernel = draw(2, 13, 10, 16, dtype="bfloat16")
    y = jax.jit(fast)(x, kernel)
    assert y.dtype == jnp.bfloat16
    wanted = plain if fast is convolve_by_rows else plain_doubled
    error = np.abs(y.astype("float32") - wanted(*(a.astype("float32") for a in (x, kernel))))
    assert error.max() < 0.04
    assert error.mean() < 0.005


@pytest.mark.parametrize(
    ("run", "wanted", "side"),
    [
        (convolve, plain, 3),
        (convolve, plain, 1),
        (convolve_doubled, plain_doubled, 3),
        (convolve_halved, plain_halved, 3),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients(fast_at_any_size, run, wanted, side, dtype):
    x, kernel = draw(2, 10, 6, 8, side=side, dtype=dtype)
    wide = x.astype("float32"), kernel.astype("float32")
    y, pull = jax.vjp(wanted, *wide)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=y.shape), dtype)
    expected = pull(weights.astype("float32"))

    @jax.jit
    def both(x, kernel):
        y, pull = jax.vjp(run, x, kernel)
        return y, *pull(weights)

    for got, exact in zip(both(x, kernel), (y, *expected), strict=True):
        assert got.dtype == dtype
        error = np.abs(got.astype("float32") - exact).max()
        assert error < (2e-5 if dtype == "float32" else 0.02) * np.abs(exact).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_each_device_and_on_an_explicit_mesh(fast_at_any_size, dtype):
    x, kernel = draw(8, 6, 5, 8, dtype=dtype)

    def run(x, kernel):
        doubled = convolve_doubled(convolve(x, kernel), kernel.swapaxes(2, 3))
        return convolve_halved(doubled, kernel)

    wanted = jax.jit(run)(x, kernel).astype("float32")
    with jax.set_mesh(mesh := make_mesh("2,2,2,1")):
        x = jax.device_put(x, on_mesh(mesh, P(AXES)))
        kernel = jax.device_put(kernel, on_mesh(mesh, P()))
        alone = manual(run, in_specs=(P(AXES), P()), out_specs=P(AXES))
        for each in (alone, run):
            y = jax.jit(each)(x, kernel)
            assert jax.typeof(y).sharding.spec[0] == AXES
            np.testing.assert_allclose(y.astype("float32"), wanted, atol=1e-5)


def test_the_fast_ways_are_taken_where_they_are_faster():
    def products(run, *shape, outputs, dtype="float32"):
        text = jax.jit(run).lower(*draw(*shape, outputs=outputs, dtype=dtype)).as_text()
        return text.count("dot_general")

    assert products(convolve, 1, 64, 64, 128, outputs=128) == 36
    assert products(convolve, 1, 32, 32, 128, outputs=256) == 24
    assert products(convolve, 16, 8, 8, 128, outputs=128) == 0
    assert products(convolve, 1, 64, 64, 32, outputs=128) == 0
    assert products(convolve, 1, 16, 16, 128, outputs=128, dtype="bfloat16") == 3
    assert products(convolve_halved, 1, 16, 16, 128, outputs=128) == 0
    assert products(convolve_halved, 1, 16, 16, 128, outputs=128, dtype="bfloat16") == 6
    assert products(convolve_doubled, 1, 16, 16, 128, outputs=128) == 9
