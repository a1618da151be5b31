"""Attention in tiles, in plain JAX: memory is linear in S, and empty tiles are skipped.

After FlashAttention-2 (Dao 2023, arXiv 2307.08691), algorithms 1 and 2. A tile holds all heads, so
that each product is large enough for all cores.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lwm.ops.cpu.product import product
from lwm.ops.mask import EMPTY, Mask

NOWHERE = -1e30  # running maximum before any key is seen; finite, so that no difference is NaN


class Side(NamedTuple):
    """Index and segment of each slot of some tiles; a tile is the last axis."""

    index: Int[Array, "... b"]
    segments: Int[Array, "... b"]


class Extent(NamedTuple):
    """Range of indexes and of segments in each tile, and whether all its slots are filled."""

    index: tuple[Array, Array]
    segments: tuple[Array, Array]
    filled: Array


def block_sizes(S: int, T: int, N: int, *, on_cpu: bool = True) -> tuple[int, int]:
    """Returns queries and keys per tile; a tile holds all N heads.

    Off the CPU, tiles of long rows have more keys: each tile there has a cost of its own, on TPUs
    by their compiler's estimate up to a third of its time.
    """
    # More queries per tile are faster but waste more of the diagonal: better for long rows only.
    # With many heads the scores of a large tile would not fit the processor's caches.
    bq, bk = min(1024 if S >= 8192 else 512, max(8192 // N, 64)), 512
    if not on_cpu:
        bk = 512 if T < 4096 else 1024 if T < 32_768 else 2048
    # Tiles of equal length, so that the last is not mostly padding.
    return _even(S, bq), _even(T, bk)


def fwd(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    *,
    blocks: tuple[int, int] | None = None,
    halves: bool = False,
    beside: Any = None,
) -> Any:
    """Returns the attention output B S N H and each row's log-sum-exp B S N, in float32.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: The mask.
        blocks: Queries and keys per tile; by default as many as suit the platform.
        halves: Tiles divide half a row, if `blocks` are not given.
        beside: Arrays that other devices send meanwhile; if given, they are returned after the
            results. Nothing that is done after the last tile can then hide that they come late.
    """
    on_cpu, elsewhere = _sizes(q, k, blocks, halves)
    return lax.platform_dependent(
        *(q, k, v, mask, beside),
        cpu=partial(_fwd, blocks=on_cpu, ones=True),
        tpu=partial(_fwd, blocks=elsewhere, ones=True),
        default=partial(_fwd, blocks=elsewhere, ones=False),
    )


def _fwd(q, k, v, mask, beside=None, *, blocks, ones):
    K, (bq, bk) = k.shape[2], blocks
    ks, vs = rows_of(k, K, bk), rows_of(with_ones(v) if ones else v, K, bk)
    q_side, k_side = _sides(mask, bq, bk)

    def query_tile(work):
        row, query, side = work
        full, partly, order = _plan(side, jax.tree.map(lambda x: x[row], k_side))
        tiles = Tiles(
            scores=lambda n: product("kqh,kth->kqt", query, ks[row, order[n]], aligned=True),
            values=lambda n: vs[row, order[n]],
            visible=lambda n: _visible(side, k_side, row, order[n], q.shape[2] // K),
        )
        return attend(query, tiles, full, full + partly, ones=ones, like=(side, k_side))

    found = lax.map(query_tile, _each(q.shape[0], rows_of(q, K, bq), q_side))
    (out, lse), beside = _tied(found, beside)
    found = unrows(out, q.shape), unrows(lse[..., None], (*q.shape[:3], 1))[..., 0]
    return found if beside is None else (found, beside)


def bwd(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    out: Float[Array, "B S N H"],
    lse: Float[Array, "B S N"],
    dout: Float[Array, "B S N H"],
    mask: Mask,
    *,
    blocks: tuple[int, int] | None = None,
    halves: bool = False,
    beside: Any = None,
) -> Any:
    """Returns dq, dk, dv in float32; `out` and `lse` may cover more keys than `k` holds.

    For `blocks`, `halves` and `beside`, see `fwd`.
    """
    inputs = q, k, v, out, lse, dout, mask, beside
    on_cpu, elsewhere = _sizes(q, k, blocks, halves)
    if on_cpu == elsewhere:
        return _bwd(*inputs, blocks=on_cpu)
    return lax.platform_dependent(
        *inputs, cpu=partial(_bwd, blocks=on_cpu), default=partial(_bwd, blocks=elsewhere)
    )


def _bwd(q, k, v, out, lse, dout, mask, beside, *, blocks):
    B, _, N, H = q.shape
    K, (bq, bk) = k.shape[2], blocks
    q_side, k_side = _sides(mask, bq, bk)
    dout = dout.astype(q.dtype)
    # Rows that see no key have p = exp(s - inf) = 0 for every s.
    lse = jnp.where(lse == -jnp.inf, jnp.inf, lse)[..., None]
    ks, vs = rows_of(k, K, bk), rows_of(v, K, bk)
    scale = H**-0.5

    def query_tile(grads, tile):
        row, query, out, do, lse, side = tile
        delta = jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), -1, keepdims=True)
        # Transposed once per row of tiles, so that dk and dv are summed as columns: on CPU a
        # product that reads its left side by columns runs at half speed.
        query_t, do_t = query.swapaxes(1, 2), do.swapaxes(1, 2)
        full, partly, order = _plan(side, jax.tree.map(lambda x: x[row], k_side))

        def step(n, carry, masked):
            dq, dks, dvs = carry
            j = order[n]
            s = product("kqh,kth->kqt", query, ks[row, j])
            if masked:
                s = jnp.where(_visible(side, k_side, row, j, N // K), s, -jnp.inf)
            p = jnp.exp(s * scale - lse)
            dp = product("kqh,kth->kqt", do, vs[row, j])
            ds = (p * (dp - delta)).astype(q.dtype)
            dks = dks.at[row, j].add(product("khq,kqt->kht", query_t, ds))
            dvs = dvs.at[row, j].add(product("khq,kqt->kht", do_t, p.astype(q.dtype)))
            return dq + product("kqt,kth->kqh", ds, ks[row, j]), dks, dvs

        dq = _vary(jnp.zeros(query.shape, jnp.float32), (q, k, v, dout, lse, side, k_side))
        carry = dq, *grads
        carry = lax.fori_loop(0, full, partial(step, masked=False), carry)
        dq, *grads = lax.fori_loop(full, full + partly, partial(step, masked=True), carry)
        return grads, dq

    zeros = jnp.zeros(ks.swapaxes(3, 4).shape, jnp.float32)
    tiles = [rows_of(x, K, bq) for x in (q, out, dout, lse)]
    grads = _vary([zeros, zeros], (q, k, v, dout, lse, q_side, k_side))
    found = lax.scan(query_tile, grads, _each(B, *tiles, q_side))
    ((dks, dvs), dq), beside = _tied(found, beside)
    dk, dv = _uncolumns(dks * scale, k.shape), _uncolumns(dvs, v.shape)
    found = unrows(dq * scale, q.shape), dk, dv
    return found if beside is None else (found, beside)


def _tied(found: Any, beside: Any) -> tuple[Any, Any]:
    """Keeps the compiler from using what the tiles found before `beside` has come, too."""
    return (found, None) if beside is None else lax.optimization_barrier((found, beside))


class Tiles(NamedTuple):
    """Keys and values of a tile of queries, tile by tile."""

    scores: Callable[[Array], Float[Array, "K q t"]]
    """Products of the queries with the keys of a tile."""
    values: Callable[[Array], Float[Array, "K t h"]]
    """Values of a tile, perhaps `with_ones`."""
    visible: Callable[[Array], Bool[Array, "#q t"]]
    """Mask of a tile that is visible in part."""


def attend(
    query: Float[Array, "K q H"],
    tiles: Tiles,
    full: Array,
    end: Array,
    *,
    ones: bool,
    like: Any = (),
) -> tuple[Float[Array, "K q H"], Float[Array, "K q"]]:
    """Attends to tiles up to `end`, of which those before `full` are not masked.

    Args:
        query: Queries of one tile.
        tiles: Keys and values.
        full: Number of tiles that are not masked.
        end: Number of tiles.
        ones: The values have a column of ones; otherwise weights are summed apart.
        like: Arrays that vary over the mesh axes over which the result does.

    Returns:
        Output and each query's log-sum-exp, in float32.
    """
    H = query.shape[-1]
    scale = H**-0.5

    def step(n, carry, masked):
        top, sums = carry
        s = tiles.scores(n)
        if masked:
            s = jnp.where(tiles.visible(n), s, -jnp.inf)
        new_top = jnp.maximum(top, s.max(-1))
        # Scaled here, where it needs no extra pass over the tile.
        p = jnp.exp((s - new_top[..., None]) * scale)
        shrink = jnp.exp((top - new_top) * scale)
        v = tiles.values(n)
        more = [product("kqt,kth->kqh", p.astype(v.dtype), v, aligned=True)]
        if not ones:
            more.append(p.sum(-1, keepdims=True))
        sums = [old * shrink[..., None] + new for old, new in zip(sums, more, strict=True)]
        return new_top, sums

    top = jnp.full(query.shape[:2], NOWHERE, jnp.float32)
    widths = [H + 1] if ones else [H, 1]
    carry = top, [jnp.zeros((*top.shape, width), jnp.float32) for width in widths]
    carry = _vary(carry, (tiles.scores(jnp.int32(0)), tiles.values(jnp.int32(0)), like))
    carry = lax.fori_loop(0, full, partial(step, masked=False), carry)
    top, sums = lax.fori_loop(full, end, partial(step, masked=True), carry)
    acc, total = sums[0][..., :H], sums[-1][..., -1]
    seen = total > 0
    safe = jnp.where(seen, total, 1)
    return acc / safe[..., None], jnp.where(seen, top * scale + jnp.log(safe), -jnp.inf)


def with_ones(v: Float[Array, "*B t H"]) -> Float[Array, "*B t H1"]:
    """Returns values with a column of ones, so that a product also sums the weights.

    For CPUs and TPUs, where another pass over the weights costs more than a column: as TPU's
    compiler estimates it, as much again as the rest of a tile. On GPUs, the sum is part of the pass
    that computes the weights, and a product of odd width is slow.
    """
    return jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1), v.dtype)], -1)


def _sizes(q, k, blocks, halves):
    """Returns the blocks on a CPU and elsewhere."""
    if blocks is not None:
        return blocks, blocks
    parts = 2 if halves else 1
    S, T = (max(1, x.shape[1] // parts) for x in (q, k))
    N = q.shape[2]
    return block_sizes(S, T, N), block_sizes(S, T, N, on_cpu=False)


def _even(length, most):
    tiles = -(-length // most)
    return -(-length // tiles)


def _sides(mask, bq, bk):
    """Cuts indexes and segments into tiles; slots past the end are empty."""
    B = mask.q_segments.shape[0]

    def side(index, segments, b):
        pad = -index.size % b
        index = jnp.broadcast_to(jnp.pad(index, (0, pad)), (B, index.size + pad))
        segments = jnp.pad(segments, ((0, 0), (0, pad)), constant_values=EMPTY)
        return Side(index.reshape(B, -1, b), segments.reshape(B, -1, b))

    return side(mask.q_index, mask.q_segments, bq), side(mask.k_index, mask.k_segments, bk)


def _extent(side):
    """Returns the extent of each tile, which decides which tiles it can see."""
    filled = side.segments >= 0
    most = jnp.iinfo(jnp.int32).max

    def between(x):
        return jnp.where(filled, x, most).min(-1), jnp.where(filled, x, -most).max(-1)

    return Extent(between(side.index), between(side.segments), filled.all(-1))


def _plan(q_side, k_side):
    """Orders the key tiles of one query tile: fully visible, partly visible, invisible."""
    q, k = _extent(q_side), _extent(k_side)
    (q_from, q_to), (k_from, k_to) = q.index, k.index
    (q_first, q_last), (k_first, k_last) = q.segments, k.segments
    some = (q_to >= k_from) & (q_last >= k_first) & (k_last >= q_first)
    one = (q_first == q_last) & (k_first == k_last) & (q_first == k_first)
    every = some & one & (q_from >= k_to) & q.filled & k.filled
    kind = jnp.where(every, 0, jnp.where(some, 1, 2))
    return every.sum(), (some & ~every).sum(), jnp.argsort(kind, stable=True)


def _visible(q_side, k_side, row, j, G):
    """Returns the mask of one tile, the same for each of the G query heads that share it."""
    k_index, k_segments = k_side.index[row, j], k_side.segments[row, j]
    later = q_side.index[:, None] >= k_index
    same = (q_side.segments[:, None] == k_segments) & (k_segments >= 0)
    return jnp.tile(later & same, (G, 1))


def _each(B, qs, *rest):
    """Flattens batch and query tiles into one axis of work items, each with its row number."""
    rows = jnp.repeat(jnp.arange(B), qs.shape[1])
    return rows, *jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (qs, *rest))


def rows_of(x, K, b):
    """Reshapes B S N H to B tiles K G·b H: all query heads of a key head share one tile."""
    B, S, N, H = x.shape
    x = jnp.pad(x, ((0, 0), (0, -S % b), (0, 0), (0, 0)))
    x = x.reshape(B, -1, b, K, N // K, H).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(B, -1, K, N // K * b, H)


def unrows(x, shape):
    """Inverts `rows_of`, from the flattened work items."""
    B, S, N, H = shape
    K = x.shape[1]
    x = x.reshape(B, -1, K, N // K, x.shape[2] * K // N, H).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(B, -1, N, H)[:, :S]


def _uncolumns(x, shape):
    """Inverts `rows_of` for keys whose tiles are transposed."""
    B, T, K, H = shape
    return x.transpose(0, 1, 4, 2, 3).reshape(B, -1, K, H)[:, :T]


def _vary(tree, like):
    """Marks constants as varying over the mesh axes of the inputs, as loop carries require."""

    def axes(x):
        return jax.typeof(x).manual_axis_type.varying

    wanted = frozenset().union(*map(axes, jax.tree.leaves(like)))

    def vary(x):
        missing = tuple(wanted - axes(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)
