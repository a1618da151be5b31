"""Reference implementation of attention, quadratic and in float32: the oracle of the tests."""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lwm.ops.mask import EMPTY, Mask


def visible(mask: Mask) -> Bool[Array, "B S T"]:
    """Returns True where a query sees a key: of its own segment and not after it."""
    q, k = mask.q_segments[:, :, None], mask.k_segments[:, None, :]
    return (q == k) & (q != EMPTY) & (mask.q_index[:, None] >= mask.k_index[None, :])


def attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N"]]:
    """Returns the output and the log-sum-exp of each query, computed over the whole square."""
    B, S, N, _ = q.shape
    scores = _scores(q, k, mask)
    # A row that sees no key has a maximum of -inf, which must not be subtracted.
    top = jnp.max(scores, axis=-1, keepdims=True, initial=jnp.finfo(jnp.float32).min)
    p = jnp.exp(scores - top)
    total = p.sum(-1, keepdims=True)
    p = p / jnp.where(total > 0, total, 1)
    out = _product("bkgst,btkh->bskgh", p, v.astype(jnp.float32)).reshape(q.shape)
    lse = jnp.where(total > 0, top + jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf)
    return out, jnp.moveaxis(lse[..., 0], 3, 1).reshape(B, S, N)


def attention_grads(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    out: Float[Array, "B S N H"],
    lse: Float[Array, "B S N"],
    dout: Float[Array, "B S N H"],
    mask: Mask,
) -> tuple[Float[Array, "B S N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Returns dq, dk, dv; `out` and `lse` may cover more keys than `k` holds."""
    wide_k, wide_v = k.astype(jnp.float32), v.astype(jnp.float32)
    queries, do, o = (_grouped(x, k) for x in (q, dout, out))
    lse = jnp.moveaxis(lse.reshape(*queries.shape[:-1]), 1, 3)[..., None]
    # A row that sees no key has lse = -inf; its scores are -inf too, and its weights are 0.
    p = jnp.exp(_scores(q, k, mask) - jnp.where(lse == -jnp.inf, 0, lse))
    delta = jnp.moveaxis((o * do).sum(-1), 1, 3)[..., None]
    ds = p * (_product("bskgh,btkh->bkgst", do, wide_v) - delta) * q.shape[3] ** -0.5
    dq = _product("bkgst,btkh->bskgh", ds, wide_k).reshape(q.shape)
    dk = _product("bkgst,bskgh->btkh", ds, queries)
    return dq, dk, _product("bkgst,bskgh->btkh", p, do)


def _scores(q, k, mask):
    scores = _product("bskgh,btkh->bkgst", _grouped(q, k), k.astype(jnp.float32))
    return jnp.where(visible(mask)[:, None, None], scores * q.shape[3] ** -0.5, -jnp.inf)


_product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def _grouped(x, k):
    """Reshapes B S N H to B S K G H."""
    return x.reshape(*x.shape[:2], k.shape[2], -1, x.shape[3]).astype(jnp.float32)
