"""Attention to a cache of pages: rows of any lengths, each with a table of its pages.

A page holds the keys and values of `PAGE` tokens in their own memory layout: keys are transposed,
in the order in which a matrix product with a query reads them. Bfloat16 may be held as bits.
Time grows with the tokens in a row, not with the size of its table.

Where several devices share the pages of a row, each attends to its own, every `step`-th from the
one at `first`; the log-sum-exp of each part says how to merge them.

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
    first: Int[Array, " B"] | None = None,
    *,
    step: int = 1,
) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N"]]:
    """Attends from S new tokens per row, whose keys and values are stored, to those up to each.

    Args:
        q: Queries.
        keys: Pages of keys.
        values: Pages of values.
        pages: Page of each `PAGE` tokens of a row that lie here; one more entry than needed.
        lengths: Tokens of each row before the new ones.
        first: Number, within its row, of the first page that lies here; None: 0.
        step: Distance to the next one in the row.

    Returns:
        Output and log-sum-exp, in float32; 0 and -inf where no page lies here.
    """
    B, S, N, _ = q.shape
    first = jnp.zeros_like(lengths) if first is None else first
    K = keys.shape[1]
    bq, _ = block_sizes(S, PAGE, N)

    def query_tile(work):
        query, row, number = work
        start = lengths[row] + number * bq
        index = jnp.tile(start + jnp.arange(bq), N // K)

        def tokens(n):
            return (first[row] + n * step) * PAGE + jnp.arange(PAGE)

        def page(n, cache):
            return from_bits(lax.dynamic_index_in_dim(cache, pages[row, n], keepdims=False))

        def summands(n):
            # A page in use may hold what an earlier row left behind; zero times NaN is NaN.
            stored = tokens(n) < lengths[row] + S
            return with_ones(jnp.where(stored[:, None], page(n, values), 0))

        tiles = Tiles(
            scores=lambda n: product("kqh,kht->kqt", query, page(n, keys), aligned=True),
            summands=summands,
            visible=lambda n: index[:, None] >= tokens(n),
        )
        full = _count(start // PAGE, first[row], step)
        return attend(query, tiles, full, _count((start + bq - 1) // PAGE + 1, first[row], step))

    tiles = rows_of(q, K, bq)
    rows, numbers = jnp.meshgrid(jnp.arange(B), jnp.arange(tiles.shape[1]), indexing="ij")
    work = tiles.reshape(-1, *tiles.shape[2:]), rows.reshape(-1), numbers.reshape(-1)
    out, lse = lax.map(query_tile, work)
    return unrows(out, q.shape), unrows(lse[..., None], (*q.shape[:3], 1))[..., 0]


def attend_pages(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "P K H b"] | UInt16[Array, "P K H b"],
    values: Float[Array, "P K b H"] | UInt16[Array, "P K b H"],
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    first: Int[Array, " B"] | None = None,
    *,
    step: int = 1,
) -> tuple[Float[Array, "B 1 N H"], Float[Array, "B 1 N"]]:
    """Attends from one new token per row, whose key and value are stored, to all up to it.

    On a CPU row by row, so that a short row does not wait for a long one; elsewhere all rows at
    once. For arguments and results, see `read_pages`.
    """
    first = jnp.zeros_like(lengths) if first is None else first
    one_by_one, together = (partial(run, step=step) for run in (by_row, all_rows))
    inputs = q, keys, values, pages, lengths, first
    if len(q) == 1:
        return one_by_one(*inputs)
    return lax.platform_dependent(*inputs, cpu=one_by_one, default=together)


def by_row(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "P K H b"] | UInt16[Array, "P K H b"],
    values: Float[Array, "P K b H"] | UInt16[Array, "P K b H"],
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    first: Int[Array, " B"] | None = None,
    *,
    step: int = 1,
) -> tuple[Float[Array, "B 1 N H"], Float[Array, "B 1 N"]]:
    """Computes `attend_pages` one row after the other, a few pages at a time."""
    grouped = _grouped(q, keys.shape[1])
    first = jnp.zeros_like(lengths) if first is None else first
    pages = jnp.pad(pages, ((0, 0), (0, -pages.shape[1] % TOGETHER)))

    def row(work):
        query, table, *place = work
        parts = _softmax(
            jnp.broadcast_to(query, (TOGETHER, *query.shape)),
            keys,
            values,
            lambda n: lax.dynamic_slice_in_dim(table, n * TOGETHER, TOGETHER),
            *(jnp.broadcast_to(each, TOGETHER) for each in place),
            step=step,
            stride=TOGETHER,
            offsets=jnp.arange(TOGETHER),
        )
        top = jnp.max(parts.top, axis=0)
        share = jnp.exp(parts.top - top)
        out = jnp.sum(parts.out * share[..., None], 0)
        return _Softmax(out, top, jnp.sum(parts.total * share, 0))

    return _divided(lax.map(row, (grouped, pages, lengths, first)), q)


def all_rows(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "P K H b"] | UInt16[Array, "P K H b"],
    values: Float[Array, "P K b H"] | UInt16[Array, "P K b H"],
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    first: Int[Array, " B"] | None = None,
    *,
    step: int = 1,
) -> tuple[Float[Array, "B 1 N H"], Float[Array, "B 1 N"]]:
    """Computes `attend_pages` for all rows at once; the longest decides the time."""
    grouped, offsets = _grouped(q, keys.shape[1]), jnp.zeros(len(q), jnp.int32)
    first = offsets if first is None else first
    found = _softmax(
        grouped,
        keys,
        values,
        lambda n: pages[:, n],
        lengths,
        first,
        step=step,
        stride=1,
        offsets=offsets,
    )
    return _divided(found, q)


class _Softmax(NamedTuple):
    """State of an online softmax (Milakov and Gimelshein 2018)."""

    out: Float[Array, "B K G H"]
    """Sum of the values, weighted."""
    top: Float[Array, "B K G"]
    """Largest score."""
    total: Float[Array, "B K G"]
    """Sum of the weights."""


def _softmax(query, keys, values, page_of, lengths, first, *, step, stride, offsets):
    """Attends from one token of each row to every `stride`-th page from the one at its offset."""

    def read(n, now, masked):
        found = page_of(n)
        k, v = (from_bits(jnp.take(cache, found, axis=0)) for cache in (keys, values))
        scores = product("bkgh,bkht->bkgt", query, k, aligned=True)
        if masked:
            start = (first + (n * stride + offsets) * step) * PAGE
            seen = start[:, None] + jnp.arange(PAGE) <= lengths[:, None]
            scores = jnp.where(seen[:, None, None, :], scores, -jnp.inf)
            # What lies beyond was left behind by another row; zero times NaN is NaN.
            v = jnp.where(seen[:, None, :, None], v, 0)
        top = jnp.maximum(now.top, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - top[..., None])
        fade = jnp.exp(now.top - top)
        mixed = product("bkgt,bkth->bkgh", weights.astype(v.dtype), v, aligned=True)
        total = now.total * fade + jnp.sum(weights, axis=-1)
        return _Softmax(now.out * fade[..., None] + mixed, top, total)

    shape = query.shape[:-1]
    start = _Softmax(
        out=jnp.zeros(query.shape, jnp.float32),
        top=jnp.full(shape, jnp.finfo(jnp.float32).min),
        total=jnp.zeros(shape),
    )
    full = jnp.min(_count((lengths + 1) // PAGE, first, step)) // stride
    state = lax.fori_loop(0, full, partial(read, masked=False), start)
    end = -(-jnp.max(_count(lengths // PAGE + 1, first, step)) // stride)
    return lax.fori_loop(full, end, partial(read, masked=True), state)


def _count(blocks, first, step):
    """Returns how many of the first `blocks` pages of a row lie here."""
    return jnp.maximum(0, -(-(blocks - first) // step))


def _grouped(q, K):
    B, _, N, H = q.shape
    return q.reshape(B, K, N // K, H) * jnp.asarray(H**-0.5, q.dtype)


def _divided(found, q):
    """Returns output and log-sum-exp of a finished softmax; a row without a page has seen nothing.

    The scores were scaled with the queries, so their logarithms need no scale.
    """
    seen = found.total > 0
    safe = jnp.where(seen, found.total, 1)
    lse = jnp.where(seen, found.top + jnp.log(safe), -jnp.inf)
    return (found.out / safe[..., None]).reshape(q.shape), lse.reshape(q.shape[:3])
