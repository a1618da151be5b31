"""Attention to pages against attention to the same keys and values in a row."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from lwm.ops import reference
from lwm.ops.held import held_size, held_type, narrowed, widened
from lwm.ops.mask import EMPTY, Mask
from lwm.ops.paged import (
    LARGE,
    PAGE,
    SMALL,
    all_rows,
    attend_pages,
    by_row,
    pages_at_once,
    read_in_tiles,
    read_pages,
)

N, K, H = 4, 2, 16
WIDTH = 4
"""Entries of a table: three pages, and one for padding."""
DTYPES = jnp.float32, jnp.bfloat16


def all_rows_in_groups(*inputs, **options):
    """Decoding as it is on TPUs when many pages are left: here two at a time, then one."""
    return all_rows(*inputs, **options, at_once=(2, 1), group=8)


def read_three_pages(q, keys, values, pages, lengths, first=None, *, step=1):
    """Reading as it is off the CPU, there four pages at a time."""
    first = jnp.zeros_like(lengths) if first is None else first
    whole = q, keys, values, pages, lengths, first
    return read_in_tiles(*whole, step=step, together=3, ones=False)


def read_one_page(q, keys, values, pages, lengths, first=None, *, step=1):
    """Reading as it is on CPUs without kernels."""
    first = jnp.zeros_like(lengths) if first is None else first
    whole = q, keys, values, pages, lengths, first
    return read_in_tiles(*whole, step=step, together=1, ones=True)


DECODE = by_row, all_rows, all_rows_in_groups
READ = read_pages, read_one_page, read_three_pages


class Rows(NamedTuple):
    """Keys and values of rows, in order and in pages."""

    keys: Array
    values: Array
    stored: tuple[Array, Array, Array]
    """Pages of keys, pages of values, and the tables."""


def normal(dtype, *shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def paged(dtype, lengths, *, seed=0) -> Rows:
    """Puts rows of so many tokens into scattered pages; all else in the pool is NaN."""
    B, T = len(lengths), (WIDTH - 1) * PAGE
    keys, values = normal(jnp.float32 if dtype == jnp.int8 else dtype, 2, B, T, K, H)
    numbers = 1 + np.random.default_rng(seed).permutation(B * WIDTH)
    tables, used = np.zeros((B, WIDTH), np.int32), iter(numbers)
    shape = 1 + B * WIDTH, K, H, PAGE
    pool = np.full((2, *shape), np.nan, np.float32)
    for row, length in enumerate(lengths):
        for n in range(-(-length // PAGE)):
            tables[row, n] = page = next(used)
            held = slice(n * PAGE, min(length, (n + 1) * PAGE))
            count = held.stop - held.start
            pool[:, page, ..., :count] = [
                np.asarray(x[row, held], np.float32).transpose(1, 2, 0) for x in (keys, values)
            ]
    held = held_type(dtype)
    pages = (
        narrowed(jnp.asarray(pool[0]), held, axis=2),
        narrowed(jnp.asarray(pool[1].swapaxes(-1, -2)), held, axis=3),
    )
    # What is held, is what is to be seen.
    keys, values = (widened(narrowed(x, held, axis=3), x.dtype, axis=3) for x in (keys, values))
    return Rows(keys, values, (*pages, jnp.asarray(tables)))


@jax.jit
def exactly(q, keys, values, lengths):
    """The quadratic attention in float32, of new tokens after so many others."""
    q, keys, values = (x.astype(jnp.float32) for x in (q, keys, values))

    def row(q, keys, values, length):
        index = jnp.arange(len(keys))
        end = length + len(q)
        segments = jnp.where(index < end, 0, EMPTY)[None]
        own = jnp.zeros((1, len(q)), jnp.int32)
        mask = Mask(length + jnp.arange(len(q)), index, own, segments)
        return reference.attention(q[None], keys[None], values[None], mask)[0][0]

    return jax.vmap(row)(q, keys, values, lengths)


def check(got, q, rows, lengths):
    got = got[0].astype(q.dtype)
    want = exactly(q, rows.keys, rows.values, jnp.asarray(lengths))
    tolerance = 1e-5 if q.dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", DECODE)
@pytest.mark.parametrize(
    "lengths", [(0, 0, 700, 0), (255, 256, 257, 1), (10, 511, 3, 767)], ids=str
)
def test_one_token_of_each_row_sees_the_tokens_of_its_row(run, dtype, lengths):
    rows = paged(dtype, [length + 1 for length in lengths])
    q = normal(dtype, len(lengths), 1, N, H, seed=1)
    got = jax.jit(run)(q, *rows.stored, jnp.asarray(lengths))
    check(got, q, rows, lengths)


@pytest.mark.parametrize("run", DECODE + READ)
def test_parts_of_rows_on_several_devices_merge_to_the_whole(run):
    """The second row has a page on the first device only."""
    size, lengths, step = 64 if run in READ else 1, (576, 0, 320), 2
    rows = paged(jnp.float32, [length + size for length in lengths])
    q = normal(jnp.float32, len(lengths), size, N, H, seed=1)
    keys, values, tables = rows.stored
    attend = jax.jit(partial(run, step=step))
    places = jnp.asarray(lengths), np.full((step, len(lengths)), np.arange(step)[:, None])
    parts = [
        attend(q, keys, values, tables[:, first::step], places[0], places[1][first])
        for first in range(step)
    ]
    assert (parts[1][0][1] == 0).all()
    assert (parts[1][1][1] == -np.inf).all()
    both = jnp.stack([lse for _, lse in parts])
    share = jax.nn.softmax(both, axis=0)[..., None]
    check((sum(share * jnp.stack([out for out, _ in parts])), both), q, rows, lengths)


def test_one_row_and_many_are_attended_to_alike():
    lengths = 300, 20
    rows, q = paged(jnp.float32, [301, 21]), normal(jnp.float32, 2, 1, N, H, seed=1)
    check(jax.jit(attend_pages)(q, *rows.stored, jnp.asarray(lengths)), q, rows, lengths)
    keys, values, tables = rows.stored
    alone = jax.jit(attend_pages)(q[:1], keys, values, tables[:1], jnp.asarray(lengths[:1]))
    check(alone, q[:1], Rows(rows.keys[:1], rows.values[:1], rows.stored), lengths[:1])


@pytest.mark.parametrize("run", READ)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "lengths"), [(64, (0, 192, 576)), (64, (320, 256, 0)), (512, (0, 256, 0))], ids=str
)
def test_new_tokens_see_those_before_them(run, dtype, size, lengths):
    rows = paged(dtype, [length + size for length in lengths])
    q = normal(dtype, len(lengths), size, N, H, seed=1)
    got = jax.jit(run)(q, *rows.stored, jnp.asarray(lengths))
    check(got, q, rows, lengths)


def test_decoding_off_the_cpu_reads_many_pages_at_a_time():
    page = 4096 * PAGE * 2 * 2  # LWM's 7B in bfloat16: 16 pages are 64 MiB
    assert pages_at_once(1, page, most=513) == (16, 2)
    assert pages_at_once(4, page, most=513) == (4, 1)
    assert pages_at_once(100, page, most=513) == (1, 1)
    assert pages_at_once(1, page // 32, most=513) == (512, 64)
    assert pages_at_once(1, page // 32, most=200) == (256, 64)
    assert pages_at_once(1, page // 32, most=9) == (9, 9)
    for rows in range(1, 70):
        large, small = pages_at_once(rows, page // 8, most=4097)
        assert large % small == 0
        assert small * rows * page // 8 <= max(SMALL, rows * page // 8)
        assert large * rows * page // 8 <= max(LARGE, rows * page // 8)


def test_tiles_of_queries_need_not_divide_a_chunk():
    """40 heads make tiles of 171 queries, of which the last has one too many."""
    lengths = 0, 256
    rows, q = paged(jnp.float32, [512, 768]), normal(jnp.float32, 2, 512, 40, H, seed=1)
    check(jax.jit(read_pages)(q, *rows.stored, jnp.asarray(lengths)), q, rows, lengths)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_company_and_in_any_pages(dtype):
    decode, read = jax.jit(by_row), jax.jit(read_pages)
    found = []
    for others, seed in ((5, 0), (600, 1)):
        lengths = [others, 520]
        for order in ([0, 1], [1, 0]):
            rows = paged(dtype, [length + 64 for length in lengths], seed=seed)
            keys, values, tables = rows.stored
            given = keys, values, tables[jnp.array(order)]
            now = jnp.asarray(lengths)[jnp.array(order)]
            q = normal(dtype, 2, 64, N, H, seed=1)[jnp.array(order)]
            at = order.index(1)
            found.append((decode(q[:, :1], *given, now)[0][at], read(q, *given, now)[0][at]))
    for one, all_of_it in found[1:]:
        np.testing.assert_array_equal(one, found[0][0])
        np.testing.assert_array_equal(all_of_it, found[0][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_held_as_they_are(dtype):
    x = normal(dtype, 5, 7)
    held = narrowed(x, held_type(dtype), axis=1)
    assert held.dtype == held_type(x.dtype)
    np.testing.assert_array_equal(widened(held, dtype, axis=1), x)


@pytest.mark.parametrize("axis", [1, 2])
def test_eight_bits_have_a_scale_for_each_token_and_head(axis):
    x = 10.0 ** jnp.arange(-3, 3)[:, None, None] * normal(jnp.float32, 6, 8, 8)
    x = x.at[2].set(0)
    held = narrowed(x, jnp.int8, axis=axis)
    assert held.shape[axis] == held_size(8, jnp.int8) == 12
    most = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    found = widened(held, jnp.float32, axis=axis)
    assert (jnp.abs(found - x) <= most / 127 * 0.5001).all()


@pytest.mark.parametrize("run", DECODE + READ)
def test_pages_of_eight_bits(run):
    lengths, new = (0, 256, 704), 64 if run in READ else 1
    rows = paged(jnp.int8, [length + new for length in lengths])
    q = normal(jnp.float32, len(lengths), new, N, H, seed=1)
    check(run(q, *rows.stored, jnp.asarray(lengths)), q, rows, lengths)


@pytest.mark.parametrize("run", DECODE + READ)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_program_converts_or_copies_the_pool(run, dtype):
    rows = paged(dtype, [100, 300, 10])
    q = normal(dtype, 3, 64 if run in READ else 1, N, H)
    text = jax.jit(run).lower(q, *rows.stored, jnp.zeros(3, jnp.int32)).compile().as_text()
    assert text is not None
    kind = {"float32": "f32", "bfloat16": "u16"}[q.dtype.name]
    wholes = [line for line in text.splitlines() if f"= {kind}[13,{K}," in line]
    assert wholes
    assert all("parameter(" in line or "get-tuple-element(" in line for line in wholes), wholes
    for other in {"f32", "bf16", "u16"} - {kind}:
        assert f"{other}[13,{K}," not in text
