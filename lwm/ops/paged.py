"""Attention to a cache of pages: rows of any lengths, each with a table of its pages.

A page holds the keys and values of `PAGE` tokens in their own memory layout: keys are transposed,
in the order in which a matrix product with a query reads them. `lwm.ops.held` has their types.
Time grows with the tokens in a row, not with the size of its table.

Where several devices share the pages of a row, each attends to its own, every `step`-th from the
one at `first`; the log-sum-exp of each part says how to merge them.

Letters as in `lwm.model.llama`; P counts pages, W the entries of a table, and b the tokens of a
page, of which there are `PAGE`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lwm.ops.blockwise import Tiles, attend, block_sizes, rows_of, unrows, with_ones
from lwm.ops.cpu.attention import attend_chunk
from lwm.ops.cpu.product import product
from lwm.ops.held import Keys, Values, widened

_KEYS, _VALUES = -2, -1
"""Axes of a head's numbers."""
PAGE = 256
"""Tokens of a page."""
TOGETHER = 2
"""Pages of a row that a decoded token reads at a time on a CPU: a sixth faster than one."""
CHUNK_TOGETHER = 4
"""Pages that a chunk of a prompt reads at a time elsewhere, where each step has a cost of its own;
on a CPU one by one."""
LARGE, SMALL = 1 << 26, 1 << 23
"""Bytes of keys and values that decoded tokens read at a time elsewhere: the first while enough
pages are left, then the second, so that short rows do not read much for nothing."""
UNIT = 8
"""Rows from which XLA for TPUs multiplies on the matrix unit."""


def read_pages(
    q: Float[Array, "B S N H"],
    keys: Keys,
    values: Values,
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
    first = jnp.zeros_like(lengths) if first is None else first
    inputs = q, keys, values, pages, lengths, first
    return lax.platform_dependent(
        *inputs,
        cpu=partial(
            attend_chunk, partial(read_in_tiles, step=step, together=1, ones=True), step=step
        ),
        tpu=partial(read_in_tiles, step=step, together=CHUNK_TOGETHER, ones=True),
        default=partial(read_in_tiles, step=step, together=CHUNK_TOGETHER, ones=False),
    )


def read_in_tiles(
    q: Float[Array, "B S N H"],
    keys: Keys,
    values: Values,
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    first: Int[Array, " B"],
    *,
    step: int,
    together: int,
    ones: bool,
) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N"]]:
    """Computes `read_pages`, so many pages together; `ones` as in `blockwise.attend`."""
    B, S, N, _ = q.shape
    K = keys.shape[1]
    bq, _ = block_sizes(S, PAGE, N)
    pages = jnp.pad(pages, ((0, 0), (0, -pages.shape[1] % together)))

    def query_tile(work):
        query, row, number = work
        start = lengths[row] + number * bq
        index = jnp.tile(start + jnp.arange(bq), N // K)

        def tokens(n):
            numbers = n * together + jnp.arange(together)
            starts = (first[row] + numbers * step) * PAGE
            return (starts[:, None] + jnp.arange(PAGE)).reshape(-1)

        def tile(n, cache, numbers):
            if together == 1:
                found = lax.dynamic_index_in_dim(cache, pages[row, n], keepdims=False)
                return widened(found, q.dtype, axis=numbers)
            # Gathered before any transposition: XLA for TPUs would transpose the whole pool.
            found = lax.dynamic_slice_in_dim(pages[row], n * together, together)
            axis = 2 if numbers == _KEYS else 1
            x = jnp.moveaxis(_pages(cache, found, q.dtype, numbers), 0, axis)
            return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

        def summands(n):
            # A page in use may hold what an earlier row left behind; zero times NaN is NaN.
            stored = tokens(n) < lengths[row] + S
            found = jnp.where(stored[:, None], tile(n, values, _VALUES), 0)
            return with_ones(found) if ones else found

        tiles = Tiles(
            scores=lambda n: product("kqh,kht->kqt", query, tile(n, keys, _KEYS), aligned=True),
            values=summands,
            visible=lambda n: index[:, None] >= tokens(n),
        )
        full = _count(start // PAGE, first[row], step) // together
        end = -(-_count((start + bq - 1) // PAGE + 1, first[row], step) // together)
        return attend(query, tiles, full, end, ones=ones)

    tiles = rows_of(q, K, bq)
    rows, numbers = jnp.meshgrid(jnp.arange(B), jnp.arange(tiles.shape[1]), indexing="ij")
    work = tiles.reshape(-1, *tiles.shape[2:]), rows.reshape(-1), numbers.reshape(-1)
    out, lse = lax.map(query_tile, work)
    return unrows(out, q.shape), unrows(lse[..., None], (*q.shape[:3], 1))[..., 0]


def attend_pages(
    q: Float[Array, "B 1 N H"],
    keys: Keys,
    values: Values,
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
    inputs = q, keys, values, pages, lengths, first
    return lax.platform_dependent(
        *inputs,
        cpu=partial(by_row, step=step),
        tpu=partial(all_rows, step=step, group=UNIT),
        default=partial(all_rows, step=step),
    )


def by_row(
    q: Float[Array, "B 1 N H"],
    keys: Keys,
    values: Values,
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    first: Int[Array, " B"] | None = None,
    *,
    step: int = 1,
) -> tuple[Float[Array, "B 1 N H"], Float[Array, "B 1 N"]]:
    """Computes `attend_pages` one row after the other, a few pages at a time."""
    first = jnp.zeros_like(lengths) if first is None else first

    def row(work):
        table, (parts, start) = work[0], _parts(Rows(*(x[None] for x in work[1:])), TOGETHER)

        def read(n, now, masked):
            at = n * TOGETHER
            found = lax.dynamic_slice_in_dim(table, at, TOGETHER)
            return _add(now, parts, keys, values, found, at + jnp.arange(TOGETHER), step, masked)

        _, length, first = (x[0] for x in parts)
        full = _count((length + 1) // PAGE, first, step) // TOGETHER
        end = -(-_count(length // PAGE + 1, first, step) // TOGETHER)
        state = lax.fori_loop(0, full, partial(read, masked=False), start)
        state = lax.fori_loop(full, end, partial(read, masked=True), state)
        return jax.tree.map(lambda x: x[0], _merged([state], rows=1))

    tables = jnp.pad(pages, ((0, 0), (0, -pages.shape[1] % TOGETHER)))
    return _divided(lax.map(row, (tables, _grouped(q, keys.shape[1]), lengths, first)), q)


def all_rows(
    q: Float[Array, "B 1 N H"],
    keys: Keys,
    values: Values,
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    first: Int[Array, " B"] | None = None,
    *,
    step: int = 1,
    at_once: tuple[int, int] | None = None,
    group: int = 1,
) -> tuple[Float[Array, "B 1 N H"], Float[Array, "B 1 N"]]:
    """Computes `attend_pages` for all rows at once; the longest decides the time.

    Whole pages are read first, many at a time, and then the rest of each row with a mask.

    Args:
        q: As the arguments that follow, see `read_pages`.
        keys: Pages of keys.
        values: Pages of values.
        pages: Table of each row.
        lengths: Tokens of each row before the new one.
        first: Number of the first page that lies here.
        step: Distance to the next one.
        at_once: Pages of a row that are read at a time, first and last; by default as many as
            `pages_at_once` says.
        group: The query heads of a key head are padded to a multiple of this.
    """
    B, N, K = len(q), q.shape[2], keys.shape[1]
    first = jnp.zeros_like(lengths) if first is None else first
    page_bytes = (keys.size + values.size) // len(keys) * keys.dtype.itemsize
    large, small = at_once or pages_at_once(B, page_bytes, most=pages.shape[1])
    padding = (0, 0), (0, 0), (0, -(N // K) % group), (0, 0)
    rows = Rows(jnp.pad(_grouped(q, K), padding), lengths, first)
    pages = jnp.pad(pages, ((0, 0), (0, -pages.shape[1] % large)))
    whole = _count((lengths + 1) // PAGE, first, step)
    end = _count(lengths // PAGE + 1, first, step)
    times = jnp.max(whole) // large
    begin = jnp.minimum(whole, times * large)

    def read_whole(n, now, parts):
        found = lax.dynamic_slice_in_dim(pages, n * large, large, axis=1).reshape(-1)
        numbers = jnp.tile(n * large + jnp.arange(large), B)
        new = _add(now, parts, keys, values, found, numbers, step, masked=False)
        # A page that is not whole may hold what an earlier row left behind, even NaN.
        is_whole = (numbers < jnp.repeat(whole, large))[:, None, None]
        return _Softmax(
            jnp.where(is_whole[..., None], new.out, now.out),
            jnp.where(is_whole, new.top, now.top),
            jnp.where(is_whole, new.total, now.total),
        )

    def read_rest(n, now, parts):
        numbers = begin[:, None] + n * small + jnp.arange(small)
        found = jnp.take_along_axis(pages, jnp.minimum(numbers, pages.shape[1] - 1), axis=1)
        inputs = found.reshape(-1), numbers.reshape(-1), step
        return _add(now, parts, keys, values, *inputs, masked=True)

    parts, start = _parts(rows, large)
    most = lax.fori_loop(0, times, partial(read_whole, parts=parts), start)
    parts, start = _parts(rows, small)
    left = -(-jnp.max(end - begin) // small)
    rest = lax.fori_loop(0, left, partial(read_rest, parts=parts), start)
    found = _merged([most, rest], rows=B)
    return _divided(jax.tree.map(lambda x: x[:, :, : N // K], found), q)


def pages_at_once(rows: int, page_bytes: int, *, most: int) -> tuple[int, int]:
    """Returns the pages of each row that `all_rows` reads at a time, first and last.

    Args:
        rows: Rows.
        page_bytes: Bytes of keys and values of a page.
        most: Entries of a row's table.
    """
    each = rows * page_bytes
    small = max(1, min(most, SMALL // each))
    return small * max(1, min(-(-most // small), LARGE // (small * each))), small


class Rows(NamedTuple):
    """Rows that are attended to together."""

    queries: Float[Array, "B K G H"]
    """Queries of one token each, scaled."""
    lengths: Int[Array, " B"]
    first: Int[Array, " B"]


class _Softmax(NamedTuple):
    """State of an online softmax (Milakov and Gimelshein 2018)."""

    out: Float[Array, "B *T K G H"]
    """Sum of the values, weighted."""
    top: Float[Array, "B *T K G"]
    """Largest score."""
    total: Float[Array, "B *T K G"]
    """Sum of the weights."""


def _pages(cache, pages, dtype, numbers):
    return widened(cache.at[pages].get(mode="promise_in_bounds"), dtype, axis=numbers)


def _parts(rows, together):
    """Returns each row so many times, one for each page read at a time; and their first states."""
    parts = Rows(*(jnp.repeat(x, together, axis=0) for x in rows))
    shape = parts.queries.shape
    start = _Softmax(
        out=jnp.zeros(shape, jnp.float32),
        top=jnp.full(shape[:-1], jnp.finfo(jnp.float32).min),
        total=jnp.zeros(shape[:-1]),
    )
    return parts, start


def _add(now, parts, keys, values, found, numbers, step, masked):
    """Attends from each part to one page more, its `numbers`-th that lies here."""
    dtype = parts.queries.dtype
    k, v = _pages(keys, found, dtype, _KEYS), _pages(values, found, dtype, _VALUES)
    scores = product("bkgh,bkht->bkgt", parts.queries, k, aligned=True)
    if masked:
        start = (parts.first + numbers * step) * PAGE
        seen = start[:, None] + jnp.arange(PAGE) <= parts.lengths[:, None]
        scores = jnp.where(seen[:, None, None, :], scores, -jnp.inf)
        # What lies beyond was left behind by another row; zero times NaN is NaN.
        v = jnp.where(seen[:, None, :, None], v, 0)
    top = jnp.maximum(now.top, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - top[..., None])
    fade = jnp.exp(now.top - top)
    mixed = product("bkgt,bkth->bkgh", weights.astype(v.dtype), v, aligned=True)
    total = now.total * fade + jnp.sum(weights, axis=-1)
    return _Softmax(now.out * fade[..., None] + mixed, top, total)


def _merged(states, *, rows):
    """Merges the parts of each row, of one or several states."""
    split = [jax.tree.map(lambda x: x.reshape(rows, -1, *x.shape[1:]), each) for each in states]
    parts = jax.tree.map(lambda *each: jnp.concatenate(each, axis=1), *split)
    top = jnp.max(parts.top, axis=1)
    share = jnp.exp(parts.top - top[:, None])
    out = jnp.sum(parts.out * share[..., None], axis=1)
    return _Softmax(out, top, jnp.sum(parts.total * share, axis=1))


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
