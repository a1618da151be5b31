"""The whole model on meshes: the same numbers, and memory that does not grow with the row."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from lwm.model.config import Compute
from lwm.model.layers import Packing
from lwm.model.llama import Llama
from lwm.model.rope import rotation
from lwm.ops.layout import order
from lwm.ops.mask import EMPTY
from lwm.ops.stream import Stream
from lwm.sharding import ACTS, make_mesh, on_mesh
from lwm.tokens import TokenSpace

SLOW = pytest.mark.slow, pytest.mark.representative
MESHES = {
    "plain": ("1,1,1,1", "1,1,1,8", "1,1,8,1"),
    "gqa, bias, norms, tied, odd vocabulary, chunks": ("1,1,1,1", "1,2,2,2", "2,2,2,1"),
}
VARIANTS = {
    "plain": {},
    "gqa, bias, norms, tied, odd vocabulary, chunks": dict(
        num_heads=16,
        qkv_bias=True,
        qk_norm=True,
        tie_embeddings=True,
        tokens=TokenSpace(text=200, vision=50, codes=48),
    ),
}
COMPUTE = {
    "plain": Compute(),
    "gqa, bias, norms, tied, odd vocabulary, chunks": Compute(
        mlp_chunk=3, loss_chunk=5, remat="attention"
    ),
}


def batch(config, length=32):
    """Rows of two documents and some padding, with targets of both modalities."""
    draw = np.random.default_rng(0).integers
    tokens, targets = draw(0, config.tokens.size, (2, 8, length))
    segments = np.repeat([[0, 0, 1, EMPTY]], 8, axis=1).reshape(1, length).repeat(8, axis=0)
    return tokens, targets, segments


@jax.jit
def logits_and_loss(model, tokens, targets, packing):
    """Logits, and the mean loss of the slots in use with its gradients."""

    def loss(model):
        nll = model.losses(tokens, targets, packing).nll
        return jnp.sum(jnp.where(packing.segments >= 0, nll, 0)) / nll.size

    return model(tokens, packing), jax.value_and_grad(loss)(model)


@pytest.mark.parametrize(
    "variant", [pytest.param("plain", marks=SLOW), *(name for name in VARIANTS if name != "plain")]
)
def test_logits_loss_and_gradients_are_equal_on_every_mesh(tiny, init, place, variant):
    config = tiny(**VARIANTS[variant])
    tokens, targets, segments = batch(config)
    results = {}
    for text in MESHES[variant]:
        mesh = make_mesh(text)
        there = order("zigzag", tokens.shape[1], mesh.shape["sp"])
        with jax.set_mesh(mesh):
            model = init(config, compute=COMPUTE[variant])
            placed, packing = place(mesh, tokens, segments, order=there)
            aims, _ = place(mesh, targets, order=there)

            logits, (loss, grads) = logits_and_loss(model, placed, aims, packing)
            logits = np.asarray(logits)[:, np.argsort(there)]
            assert np.isneginf(logits[..., config.tokens.size :]).all()
            logits = logits[..., : config.tokens.size]
            results[text] = logits, float(loss), jax.device_get(grads)
    logits, loss, grads = results.pop("1,1,1,1")
    assert logits.std() > 0.5
    for text, (others, other_loss, other_grads) in results.items():
        assert np.abs(others - logits).max() <= 1e-4, text
        assert abs(other_loss - loss) <= 1e-4, text
        for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
            assert np.abs(one - other).max() <= 1e-4 * max(np.abs(one).max(), 1e-6), text


@pytest.mark.slow
@pytest.mark.representative
def test_rematerialisation_changes_no_gradient(tiny, init, place):
    """Where attention is kept, no keys, values or gradients of theirs are sent on again."""
    tokens, targets, segments = batch(tiny())
    found = {}
    with jax.set_mesh(mesh := make_mesh("1,1,2,4")):
        placed, packing = place(mesh, tokens, segments)
        aims, _ = place(mesh, targets)
        gradient = jax.jit(jax.grad(lambda m: m.losses(placed, aims, packing).nll.mean()))
        for remat in ("none", "dots", "attention", "offload", "full"):
            model = init(tiny(), compute=Compute(remat=remat))
            done = gradient.lower(model).compile()
            text = done.as_text() or ""
            sent = re.findall(r"= \(?f32[^=]*collective-permute(?:-start)?\(", text)
            found[remat] = jax.device_get(done(model)), len(sent)
    saved, _ = found["none"]
    for grads, _ in found.values():
        for one, other in zip(*map(jax.tree.leaves, (saved, grads)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * float(np.abs(one).max()))
    once, kept, again = (found[remat][1] for remat in ("none", "attention", "full"))
    assert kept == once < again


def test_documents_do_not_leak_through_a_layer(tiny, init, place):
    """With fixed cotangents, another document's tokens change nothing, to the bit."""
    config = tiny(num_layers=1, num_heads=16)
    segments = np.repeat([[0, 0, 1, 2]], 16, axis=1).reshape(1, 64).repeat(2, axis=0)
    inside = segments == 1
    x, dout = np.random.default_rng(0).normal(size=(2, 2, 64, config.dim)).astype(np.float32)
    other = np.where(inside[..., None], 5 - 3 * x, x)
    for text in ("1,1,1,1", "1,1,1,8", "1,2,2,2"):
        mesh = make_mesh(text)
        there = order("zigzag", 64, mesh.shape["sp"])
        with jax.set_mesh(mesh):
            block = init(config).unstack().blocks[0]
            _, packing = place(mesh, np.zeros((2, 64)), segments, order=there)
            turn = functools.partial(rotation, rope=config.rope, head_dim=config.head_dim)

            @jax.jit
            def run(x, dout, block=block, turn=turn, packing=packing):
                stream = Stream.of(x.shape[1], chunk=8)

                def layer(x):
                    return stream.leave(block(stream.enter(x), turn, packing, stream))

                out, pull = jax.vjp(layer, x)
                return out, *pull(dout)

            outs = []
            for value in (x, other):
                laid = [jax.device_put(y[:, there], on_mesh(mesh, ACTS)) for y in (value, dout)]
                outs.append([np.asarray(y)[:, np.argsort(there)] for y in run(*laid)])
        for before, after in zip(*outs, strict=True):
            np.testing.assert_array_equal(before[~inside], after[~inside])
            assert np.any(before[inside] != after[inside])


class Compiled:
    """The gradient of a small model's loss, compiled for a row of some length."""

    def __init__(self, config, *, length, sp, tp=1, mlp_chunk=128, loss_chunk=128):
        compute = Compute(remat="attention", mlp_chunk=mlp_chunk, loss_chunk=loss_chunk)
        mesh = make_mesh(f"tp={tp},sp={sp}")
        with jax.set_mesh(mesh):

            def loss(model, tokens, targets, packing):
                return model.losses(tokens, targets, packing).nll.mean()

            model = jax.eval_shape(lambda: Llama.init(config, compute, key=jr.key(0)))
            packing = jax.eval_shape(lambda: Packing.whole(1, length))
            ids = packing.segments
            done = jax.jit(jax.grad(loss)).lower(model, ids, ids, packing).compile()
        memory, text = done.memory_analysis(), done.as_text()
        assert memory is not None
        assert text is not None
        self.bytes = memory.temp_size_in_bytes
        """Temporary bytes of one device."""
        shapes = re.findall(r"\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)
        self.shapes = {tuple(map(int, shape.split(","))) for shape in shapes}
        """Shapes of the arrays of one device."""

    @property
    def largest(self):
        """Elements of the largest array of one device."""
        return max(map(math.prod, self.shapes))


compiled = functools.cache(Compiled)


@pytest.fixture
def frugal(tiny):
    return tiny(
        tokens=TokenSpace(text=3000, vision=1000, codes=900),
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        mlp_dim=1024,
    )


@pytest.mark.slow
@pytest.mark.representative
def test_memory_of_a_device_grows_with_its_tokens_and_not_with_the_ring(frugal):
    used = [compiled(frugal, length=512 * sp, sp=sp).bytes for sp in (2, 8)]
    assert max(used) <= 1.1 * min(used), used
    short, long = (compiled(frugal, length=length, sp=2).bytes for length in (2048, 8192))
    assert long <= 4 * short, (short, long)


def test_nothing_is_quadratic_or_as_wide_as_the_vocabulary(frugal):
    largest = compiled(frugal, length=2048, sp=2).largest
    assert largest < 1024**2  # scores
    assert largest < 1024 * frugal.tokens.rows  # logits
    assert largest < 1024 * frugal.mlp_dim  # hidden states of feed-forward layers


def test_without_chunks_it_would_be(frugal):
    """That the largest array is looked for in the right place."""
    shapes = compiled(frugal, length=2048, sp=2, loss_chunk=1024, mlp_chunk=1024).shapes
    for width in (frugal.tokens.rows, frugal.mlp_dim):
        assert any(shape[-1] == width and math.prod(shape) >= 1024 * width for shape in shapes)
