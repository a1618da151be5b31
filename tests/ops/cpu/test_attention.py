"""The kernels that attend to pages, beside plain JAX and the quadratic reference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.model.pool import _plain
from lwm.ops import reference
from lwm.ops.cpu.attention import attend_new
from lwm.ops.held import held_type, narrowed, widened
from lwm.ops.mask import Mask
from lwm.ops.paged import PAGE, read_in_tiles, read_pages

WIDTH = 5
LENGTHS = 0, 255, 256, 1000, 3


def inputs(held, heads, queries, size, lengths=LENGTHS, *, seed=0):
    """New tokens, pages in which all but the tokens before them is NaN, and their tables."""
    rng, rows = np.random.default_rng(seed), len(lengths)
    shapes = (heads * queries, size), (heads, size), (heads, size)
    dtype = jnp.float32 if held == jnp.int8 else held
    q, k, v = (jnp.asarray(rng.normal(size=(rows, 1, *shape)), dtype) for shape in shapes)
    tables = 1 + rng.permutation(rows * WIDTH).reshape(rows, WIDTH).astype(np.int32)
    pool = np.full((2, 1 + rows * WIDTH, heads, size, PAGE), np.nan, np.float32)
    for table, length in zip(tables, lengths, strict=True):
        for n in range(-(-length // PAGE)):
            count = min(PAGE, length - n * PAGE)
            pool[:, table[n], ..., :count] = rng.normal(size=(2, heads, size, count))
    keys = narrowed(jnp.asarray(pool[0]), held_type(held), axis=2)
    values = narrowed(jnp.asarray(pool[1].swapaxes(2, 3)), held_type(held), axis=3)
    at = jnp.asarray(lengths, jnp.int32)
    return q, k, v, keys, values, jnp.asarray(tables), at, jnp.zeros_like(at)


@partial(jax.jit, static_argnames="step")
def kernel(*given, step=1):
    return attend_new(partial(_plain, step=step), *given, step=step)


@partial(jax.jit, static_argnames="step")
def plain(*given, step=1):
    return _plain(*given, step=step)


def exactly(q, keys, values, table, length):
    """Attends to the pages of one row, read in their order."""

    def row(pages, axis):
        numbers = widened(pages[table], jnp.float32, axis=5 - axis)
        found = np.moveaxis(np.asarray(numbers), axis, 1)
        return jnp.asarray(found.reshape(-1, *found.shape[2:])[: length + 1])[None]

    own, seen = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, length + 1), jnp.int32)
    mask = Mask(jnp.array([length]), jnp.arange(length + 1), own, seen)
    wide = q[None].astype(jnp.float32)
    return reference.attention(wide, row(keys, 3), row(values, 2), mask)[0][0]


SHAPES = ((3, 3, 64), (2, 1, 16), (1, 7, 24), (2, 2, 5))
"""Key heads, query heads for each, and their size: whole vectors, and less than one."""


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_new_tokens_are_stored_and_see_their_rows(dtype, shape):
    given = inputs(dtype, *shape)
    assert "lwm_attend" in kernel.lower(*given).as_text()
    out, lse, keys, values = kernel(*given)
    others = plain(*given)
    for found, wanted in ((keys, others[2]), (values, others[3])):
        bits, same = (np.asarray(x).view(np.uint8) for x in (found, wanted))
        np.testing.assert_array_equal(bits, same)
    if dtype != jnp.bfloat16:
        np.testing.assert_allclose(out, others[0], atol=1e-5)
        np.testing.assert_allclose(lse, others[1], atol=1e-5)
    for row, length in enumerate(LENGTHS):
        wanted = exactly(given[0][row], keys, values, given[5][row], length)
        np.testing.assert_allclose(out[row], wanted, atol=1e-5)


def test_bits_of_a_row_do_not_depend_on_its_company():
    whole = inputs(jnp.float32, 3, 3, 64)
    together = kernel(*whole)
    for row in range(len(LENGTHS)):
        alone = kernel(*(x if i in (3, 4) else x[row : row + 1] for i, x in enumerate(whole)))
        np.testing.assert_array_equal(alone[0][0], together[0][row])


def test_pages_of_several_devices_merge_to_the_whole():
    given, step = inputs(jnp.float32, 2, 2, 16), 2
    whole = kernel(*given)
    parts = [kernel(*given[:7], given[7] + first, step=step) for first in range(step)]
    assert (parts[1][1][0] == -np.inf).all()
    assert (parts[1][0][0] == 0).all()
    share = jax.nn.softmax(jnp.stack([lse for _, lse, *_ in parts]), axis=0)[..., None]
    merged = sum(share * jnp.stack([out for out, *_ in parts]))
    np.testing.assert_allclose(merged, whole[0], atol=1e-5)


def test_rows_of_many_pages_are_attended_to_in_more_parts_than_one():
    """Parts have two pages each here."""
    lengths = ((WIDTH - 1) * PAGE + 17,)
    given = inputs(jnp.float32, 1, 2, 32, lengths)
    out, *_ = kernel(*given)
    np.testing.assert_allclose(out, plain(*given)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "held"),
    [
        (jnp.float32, jnp.float32),
        (jnp.float32, jnp.bfloat16),
        (jnp.bfloat16, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32),
        (jnp.float32, jnp.int8),
    ],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_see_their_rows(dtype, held, shape):
    """Chunks of 64 tokens, of which the second crosses a page."""
    heads, queries, size = shape
    before, tokens = (0, 224, 512), 64
    _, _, _, keys, values, tables, lengths, _ = inputs(
        held, *shape, lengths=[length + tokens for length in before]
    )
    shape = len(before), tokens, heads * queries, size
    q = jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)
    given = q, keys, values, tables, lengths - tokens
    read = jax.jit(read_pages)
    assert "lwm_read" in read.lower(*given).as_text()
    out, lse = read(*given)
    for row, length in enumerate(before):
        for token in (0, 33, tokens - 1):
            wanted = exactly(q[row, token][None], keys, values, tables[row], length + token)
            tolerance = 2e-2 if dtype == held == jnp.bfloat16 else 1e-5
            np.testing.assert_allclose(out[row, token][None], wanted, atol=tolerance)
    slow = jax.jit(partial(read_in_tiles, step=1, together=1, ones=True))
    _, wanted = slow(q.astype(jnp.float32), *given[1:], jnp.zeros_like(lengths))
    np.testing.assert_allclose(lse, wanted, atol=1e-2 if dtype == jnp.bfloat16 else 1e-5)
