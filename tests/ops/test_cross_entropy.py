"""The loss in chunks against the loss over all logits, on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.ops.cross_entropy import cross_entropy
from lwm.ops.stream import Stream
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

SPACES = {
    "text": TokenSpace(text=256),
    "text, padded rows": TokenSpace(text=200),
    "text and vision": TokenSpace(text=150, vision=90, codes=60),
}
MESHES = ("1,1,1,1", "1,2,2,2", "1,1,1,8", "2,2,2,1", "1,1,8,1")


def draw(space, length=24):
    rng = np.random.default_rng(0)
    shapes = (4, length, 32), (space.rows, 32), (2, 4, length)
    x, table, cotangents = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, table, rng.integers(0, space.size, (4, length), np.int32), cotangents


def by_all_logits(x, table, targets, space):
    """The oracle: the slice of each target's modality, as a whole."""
    logits = x @ table.T
    text, vision = logits[..., : space.text], logits[..., space.text : space.size]
    lse = jax.nn.logsumexp(text, -1)
    best = text.max(-1)
    if space.vision:
        is_text = targets < space.text
        lse = jnp.where(is_text, lse, jax.nn.logsumexp(vision, -1))
        best = jnp.where(is_text, best, vision.max(-1))
    own = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return lse - own, lse, own == best


@functools.cache
def compiled(mesh_text, space, chunk):
    @jax.jit
    def run(x, table, targets, cotangents):
        def score(x, table):
            stream = Stream.of(x.shape[1], chunk=5)
            states = stream.enter(x)
            found = cross_entropy(states, table, targets, stream=stream, tokens=space, chunk=chunk)
            return (found.nll, found.lse), found.correct

        scores, pull, correct = jax.vjp(score, x, table, has_aux=True)
        return *scores, correct, *pull(tuple(cotangents))

    def call(*arguments):
        with jax.set_mesh(make_mesh(mesh_text)):
            return jax.device_get(run(*arguments))

    return call


@functools.cache
def oracle(space):
    @jax.jit
    def run(x, table, targets, cotangents):
        def score(x, table):
            nll, lse, correct = by_all_logits(x, table, targets, space)
            return (nll, lse), correct

        scores, pull, correct = jax.vjp(score, x, table, has_aux=True)
        return *scores, correct, *pull(tuple(cotangents))

    return run


@pytest.mark.parametrize(
    ("mesh_text", "name"),
    [
        *((mesh, "text and vision") for mesh in MESHES),
        ("1,1,1,1", "text"),
        ("1,2,2,2", "text"),
        ("1,1,1,1", "text, padded rows"),
        ("1,1,8,1", "text, padded rows"),
    ],
)
def test_is_the_loss_over_all_logits(mesh_text, name):
    space = SPACES[name]
    x, table, targets, cotangents = draw(space)
    got = compiled(mesh_text, space, 7)(x, table, targets, cotangents)
    want = jax.device_get(oracle(space)(x, table, targets, cotangents))
    np.testing.assert_array_equal(got[2], want[2])
    for g, t in zip(got, want, strict=True):
        np.testing.assert_allclose(g, t, rtol=0, atol=1e-5 * max(1, np.abs(t).max()))


def test_rows_need_not_divide_by_tp():
    space = SPACES["text and vision"]
    drawn = draw(space, length=12)
    for got, want in zip(compiled("1,1,8,1", space, 7)(*drawn), oracle(space)(*drawn), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))


def test_the_size_of_chunks_changes_nothing():
    space = SPACES["text and vision"]
    found = [compiled("1,1,2,2", space, chunk)(*draw(space)) for chunk in (1, 5, 1000)]
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            np.testing.assert_allclose(one, same, atol=2e-5)


def test_no_row_of_logits_exists():
    space = TokenSpace(text=4096)
    x, table, targets = map(jnp.asarray, draw(space, length=512)[:3])

    def loss(x, table):
        stream = Stream.of(x.shape[1])
        states = stream.enter(x)
        found = cross_entropy(states, table, targets, stream=stream, tokens=space, chunk=64)
        return found.nll.sum()

    with jax.set_mesh(make_mesh()):
        compiled_loss = jax.jit(jax.grad(loss, (0, 1))).lower(x, table).compile()
    memory = compiled_loss.memory_analysis()
    assert memory is not None
    logits = 4 * targets.size * space.rows
    assert memory.temp_size_in_bytes < logits / 4


def test_bfloat16_is_near():
    space = SPACES["text and vision"]
    x, table, targets, cotangents = draw(space)
    half = x.astype(jnp.bfloat16), table.astype(jnp.bfloat16)
    got = compiled("1,1,2,2", space, 7)(*half, targets, cotangents)
    want = compiled("1,1,2,2", space, 7)(x, table, targets, cotangents)
    for g, t in zip(got[:2] + got[3:], want[:2] + want[3:], strict=True):
        assert np.abs(g.astype(np.float32) - t).max() <= 3e-2 * np.abs(t).max()
