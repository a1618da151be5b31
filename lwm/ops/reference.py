"""The obvious version of each op, quadratic and fp32: what the tests compare with."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lwm.ops.mask import EMPTY, Mask


def visible(mask: Mask) -> Bool[Array, "B S T"]:
    """Says which keys each query sees: those of its segment that do not come after it."""
    q, k = mask.q_segments[:, :, None], mask.k_segments[:, None, :]
    return (q == k) & (q != EMPTY) & (mask.q_index[:, None] >= mask.k_index[None, :])


def attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N"]]:
    """Attends over the whole square at once; returns the output and each row's log-sum-exp."""
    B, S, N, H = q.shape
    seen = visible(mask)[:, None, None]
    grouped = q.reshape(B, S, k.shape[2], -1, H).astype(jnp.float32)
    scores = jnp.einsum("bskgh,btkh->bkgst", grouped, k.astype(jnp.float32)) * H**-0.5
    scores = jnp.where(seen, scores, -jnp.inf)
    # A row that sees no key has a maximum of -inf, which must meet no subtraction.
    top = jnp.max(scores, axis=-1, keepdims=True, initial=jnp.finfo(jnp.float32).min)
    p = jnp.exp(scores - top)
    total = p.sum(-1, keepdims=True)
    p = p / jnp.where(total > 0, total, 1)
    out = jnp.einsum("bkgst,btkh->bskgh", p, v.astype(jnp.float32)).reshape(q.shape)
    lse = jnp.where(total > 0, top + jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf)
    return out.astype(q.dtype), jnp.moveaxis(lse[..., 0], 3, 1).reshape(B, S, N)
