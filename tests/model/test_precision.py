"""Precision of all products, as they are lowered for GPUs and TPUs."""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.model.config import Compute
from lwm.model.layers import Packing
from lwm.model.pool import PAGE, PagePool, Place
from lwm.ops.precision import precision_of
from lwm.sharding import ROW, ROWS, put, tokens_spec
from lwm.train.vqgan.perceptual import LPIPS
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.model import VQGAN

PLATFORMS = "cuda", "tpu"


class Product(NamedTuple):
    """A matrix product or a convolution of a program."""

    types: frozenset[str]
    precision: str | None
    """None: it is left to the platform."""


def products(function, *arguments) -> set[Product]:
    """Lowers a function for GPUs and for TPUs and reads its products, which are alike for both."""
    traced = jax.jit(function).trace(*arguments)
    cuda, tpu = (
        {_read(line) for line in re.findall(r"stablehlo\.(?:dot_general|convolution)\b.*", text)}
        for text in (traced.lower(lowering_platforms=(each,)).as_text() for each in PLATFORMS)
    )
    assert cuda == tpu
    return cuda


def _read(line: str) -> Product:
    inputs = line.rpartition(" : (")[2].partition(") -> ")[0]
    types = frozenset(re.findall(r"tensor<(?:\d+x)*(\w+)>", inputs))
    precisions = set(re.findall(r"\b(?:DEFAULT|HIGH|HIGHEST)\b", line)) - {"DEFAULT"}
    assert len(precisions) < 2
    return Product(types, precisions.pop() if precisions else None)


STATED = {
    "float32": Product(frozenset({"f32"}), "HIGHEST"),
    "bfloat16": Product(frozenset({"bf16"}), None),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_multiplies_in_the_type_that_it_states(mesh, tiny, init, dtype):
    """The weights are float32, as in training."""
    model = init(tiny(num_kv_heads=4), compute=Compute(dtype=dtype, mlp_chunk=16))
    table, lengths, offsets = np.array([[1, 2, 3]]), np.array([PAGE]), np.array([0])
    place = Place(put(table, mesh, ROWS), put(lengths, mesh, ROW), put(offsets, mesh, ROW))
    pool = PagePool.empty(model.config, dtype, per_device=4)

    def loss(model, ids):
        return model.losses(ids, ids, Packing.whole(1, 64)).nll.sum()

    def generate(model, ids, pool):
        states, pool = model.extend(ids, place, pool)
        return model.logits(model.norm(states)), pool

    def ids(count):
        return put(np.zeros((1, count), np.int32), mesh, tokens_spec(count))

    assert products(jax.grad(loss), model, ids(64)) == {STATED[dtype]}
    assert products(generate, model.unstack(), ids(64), pool) == {STATED[dtype]}
    assert products(generate, model.unstack(), ids(1), pool) == {STATED[dtype]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_vqgan_multiplies_in_the_type_that_it_states(mesh, dtype):
    """In bfloat16, latents and the search for codes are float32.

    So is one side of the products in the gradient of attention, which JAX makes itself.
    """
    config = VQGANConfig(
        resolution=16,
        hidden=32,
        multipliers=(1, 4),
        res_blocks=1,
        z_channels=4,
        codes=8,
        code_dim=4,
        dtype=dtype,
    )

    def shapes(**changes):
        changed = dataclasses.replace(config, **changes)
        return jax.eval_shape(lambda: VQGAN.init(changed, key=jax.random.key(0)))

    pixels = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)

    def both(model, pixels):
        return model.pixels(model.latents(pixels)), model.encode(pixels)

    def loss(model, pixels):
        return jnp.sum(both(model, pixels)[0])

    wanted = {STATED[dtype], STATED["float32"]}
    assert products(both, shapes(middle_attention=True), pixels) == wanted
    assert products(jax.grad(loss), shapes(middle_attention=dtype == "float32"), pixels) == wanted


def test_perceptual_distances_are_float32():
    sizes = (11, 3, 64), (5, 64, 192), (3, 192, 384), (3, 384, 256), (3, 256, 256)

    kernels = tuple(jnp.zeros((side, side, into, out)) for side, into, out in sizes)
    rows = tuple(jnp.zeros(out) for *_, out in sizes)
    network = LPIPS(kernels=kernels, biases=rows, heads=rows, network="alexnet")
    frames = jnp.zeros((1, 64, 64, 3))

    def distance(frames, others, network):
        return network(frames, others).sum()

    assert products(jax.grad(distance), frames, frames, network) == {STATED["float32"]}


def test_a_default_given_to_jax_goes_before():
    x = np.ones((2, 2), np.float32)

    def multiply(x):
        return jnp.matmul(x, x, precision=precision_of(x, x))

    assert products(multiply, x) == {STATED["float32"]}
    with jax.default_matmul_precision("tensorfloat32"):
        assert products(multiply, x) != {STATED["float32"]}
