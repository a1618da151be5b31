"""Attention to a cache of pages: rows of any lengths, each with a table of its pages.

A page holds the keys and values of `PAGE` tokens in their own memory layout: keys are transposed,
in the order in which a matrix product with a query reads them. Bfloat16 may be held as bits.
Time grows with the tokens in a row, not with the size of its table.

Letters as in `lwm.model.llama`; P counts pages, W the entries of a table, and b the tokens of a
page, of which there are `PAGE`.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt16

from lwm.ops.blockwise import Tiles, attend, block_sizes, rows_of, unrows, with_ones
from lwm.ops.cpu.bits import from_bits
from lwm.ops.cpu.product import product

PAGE = 256
"""Tokens of a page."""
TOGETHER = 2
"""Pages of a row that are read at a time on a CPU: a sixth faster than one."""


def read_pages(
    q: Float[Array, "B S N H"],
    keys: Float[Array, "P K H b"] | UInt16[Array, "P K H b"],
    values: Float[Array, "P K b H"] | UInt16[Array, "P K b H"],
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B S N H"]:
    """Attends from S new tokens per row, whose keys and values are stored, to those up to each.

    Args:
        q: Queries.
        keys: Pages of keys.
        values: Pages of values.
        pages: Page of each `PAGE` tokens of a row; one more entry than a row can have tokens for.
        lengths: Tokens of each row before the new ones.
    """
    B, S, N, _ = q.shape
    K = keys.shape[1]
    bq, _ = block_sizes(S, PAGE, N)

    def query_tile(work):
        query, row, number = work
        first = lengths[row] + number * bq
        index = jnp.tile(first + jnp.arange(bq), N // K)

        def page(n, cache):
            return from_bits(lax.dynamic_index_in_dim(cache, pages[row, n], keepdims=False))

        def summands(n):
            # A page in use may hold what an earlier row left behind; zero times NaN is NaN.
            stored = n * PAGE + jnp.arange(PAGE) < lengths[row] + S
            return with_ones(jnp.where(stored[:, None], page(n, values), 0))

        tiles = Tiles(
            scores=lambda n: product("kqh,kht->kqt", query, page(n, keys), aligned=True),
            summands=summands,
            visible=lambda n: index[:, None] >= n * PAGE + jnp.arange(PAGE),
        )
        out, _ = attend(query, tiles, first // PAGE, (first + bq - 1) // PAGE + 1)
        return out

    tiles = rows_of(q, K, bq)
    rows, numbers = jnp.meshgrid(jnp.arange(B), jnp.arange(tiles.shape[1]), indexing="ij")
    work = tiles.reshape(-1, *tiles.shape[2:]), rows.reshape(-1), numbers.reshape(-1)
    return unrows(lax.map(query_tile, work), q.shape).astype(q.dtype)


def attend_pages(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "P K H b"] | UInt16[Array, "P K H b"],
    values: Float[Array, "P K b H"] | UInt16[Array, "P K b H"],
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B 1 N H"]:
    """Attends from one new token per row, whose key and value are stored, to all up to it.

    On a CPU row by row, so that a short row does not wait for a long one; elsewhere all rows at
    once. For the arguments, see `read_pages`.
    """
    if len(q) == 1:
        return by_row(q, keys, values, pages, lengths)
    return lax.platform_dependent(q, keys, values, pages, lengths, cpu=by_row, default=all_rows)


def by_row(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "P K H b"] | UInt16[Array, "P K H b"],
    values: Float[Array, "P K b H"] | UInt16[Array, "P K b H"],
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B 1 N H"]:
    """Computes `attend_pages` one row after the other, a few pages at a time."""
    grouped = _grouped(q, keys.shape[1])
    pages = jnp.pad(pages, ((0, 0), (0, -pages.shape[1] % TOGETHER)))

    def row(work):
        query, table, length = work
        parts = _softmax(
            jnp.broadcast_to(query, (TOGETHER, *query.shape)),
            keys,
            values,
            lambda n: lax.dynamic_slice_in_dim(table, n * TOGETHER, TOGETHER),
            jnp.broadcast_to(length, TOGETHER),
            stride=TOGETHER,
            offsets=jnp.arange(TOGETHER),
        )
        share = jnp.exp(parts.top - jnp.max(parts.top, axis=0))
        return jnp.sum(parts.out * share[..., None], 0) / jnp.sum(parts.total * share, 0)[..., None]

    return _merged(lax.map(row, (grouped, pages, lengths)), q)


def all_rows(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "P K H b"] | UInt16[Array, "P K H b"],
    values: Float[Array, "P K b H"] | UInt16[Array, "P K b H"],
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B 1 N H"]:
    """Computes `attend_pages` for all rows at once; the longest decides the time."""
    grouped, first = _grouped(q, keys.shape[1]), jnp.zeros(len(q), jnp.int32)
    found = _softmax(grouped, keys, values, lambda n: pages[:, n], lengths, stride=1, offsets=first)
    return _merged(found.out / found.total[..., None], q)


class _Softmax(NamedTuple):
    """State of an online softmax (Milakov and Gimelshein 2018)."""

    out: Float[Array, "B K G H"]
    """Sum of the values, weighted."""
    top: Float[Array, "B K G"]
    """Largest score."""
    total: Float[Array, "B K G"]
    """Sum of the weights."""


def _softmax(query, keys, values, page_of, lengths, *, stride, offsets):
    """Attends from one token of each row to every `stride`-th page from the one at its offset."""

    def read(n, now, masked):
        found = page_of(n)
        k, v = (from_bits(jnp.take(cache, found, axis=0)) for cache in (keys, values))
        scores = jnp.einsum("bkgh,bkht->bkgt", query, k, preferred_element_type=jnp.float32)
        if masked:
            first = (n * stride + offsets) * PAGE
            seen = first[:, None] + jnp.arange(PAGE) <= lengths[:, None]
            scores = jnp.where(seen[:, None, None, :], scores, -jnp.inf)
            # What lies beyond was left behind by another row; zero times NaN is NaN.
            v = jnp.where(seen[:, None, :, None], v, 0)
        top = jnp.maximum(now.top, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - top[..., None])
        fade = jnp.exp(now.top - top)
        mixed = jnp.einsum(
            "bkgt,bkth->bkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        total = now.total * fade + jnp.sum(weights, axis=-1)
        return _Softmax(now.out * fade[..., None] + mixed, top, total)

    shape = query.shape[:-1]
    start = _Softmax(
        out=jnp.zeros(query.shape, jnp.float32),
        top=jnp.full(shape, jnp.finfo(jnp.float32).min),
        total=jnp.zeros(shape),
    )
    full = jnp.min(lengths + 1) // (PAGE * stride)
    state = lax.fori_loop(0, full, partial(read, masked=False), start)
    end = jnp.max(lengths) // (PAGE * stride) + 1
    return lax.fori_loop(full, end, partial(read, masked=True), state)


def _grouped(q, K):
    B, _, N, H = q.shape
    return q.reshape(B, K, N // K, H) * jnp.asarray(H**-0.5, q.dtype)


def _merged(out, q):
    return out.reshape(q.shape).astype(q.dtype)
