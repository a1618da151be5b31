"""Cross-entropy over a vocabulary split over `tp`, without the logits of a whole row in memory.

The logits of a few tokens at a time are computed, reduced and discarded, and computed again in the
backward pass. Each token is scored within its own modality: text among the text ids, vision among
the vision ids, as in LWM.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Bool, Float, Int

from lwm.ops.cpu.product import product
from lwm.sharding import ACTS, SHARD, TOKENS, manual
from lwm.tokens import TokenSpace


class TokenLoss(NamedTuple):
    """Loss of each target, within the target's own modality."""

    nll: Float[Array, "B S"]
    """Negative log-likelihood in nats."""
    lse: Float[Array, "B S"]
    """Log-sum-exp of the logits, for z-loss."""
    correct: Bool[Array, "B S"]
    """True where no other id has a higher score."""


def cross_entropy(
    x: Float[Array, "B S D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B S"],
    *,
    tokens: TokenSpace,
    chunk: int,
) -> TokenLoss:
    """Scores the targets under the logits `x · tableᵀ`; differentiable in both.

    Args:
        x: States after the last layer.
        table: The head, one row per id.
        targets: Ids; any id where no target is to be scored.
        tokens: The token space.
        chunk: Tokens per device whose logits exist at a time.
    """
    x, table = reshard(x, ACTS), reshard(table, P("tp", SHARD))
    return TokenLoss(*_cross_entropy(x, table, reshard(targets, TOKENS), tokens, chunk))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _cross_entropy(x, table, targets, tokens, chunk):
    return _forward(x, table, targets, tokens, chunk)[0]


def _forward(x, table, targets, tokens, chunk):
    def local(x, table, targets):
        def score(work):
            x, target = work
            logits, is_target = _logits(x, table, target, tokens)
            top = lax.pmax(logits.max(-1), "tp")
            total = lax.psum(jnp.exp(logits - top[:, None]).sum(-1), "tp")
            own = lax.psum(jnp.where(is_target, logits, 0).sum(-1), "tp")
            lse = top + jnp.log(total)
            return lse - own, lse, own >= top

        scores = lax.map(score, _chunks((x, targets), chunk))
        return tuple(_whole(score, targets.shape) for score in scores)

    mapped = manual(local, (ACTS, P("tp", None), TOKENS), (TOKENS, TOKENS, TOKENS))
    nll, lse, correct = mapped(x, reshard(table, P("tp", None)), targets)
    return (nll, lse, correct), (x, table, targets, lse)


def _backward(tokens, chunk, saved, cotangents):
    def local(x, table, targets, lse, dnll, dlse):
        def grads(total, work):
            x, target, lse, dnll, dlse = work
            logits, is_target = _logits(x, table, target, tokens)
            p = jnp.exp(logits - lse[:, None])
            d = (dnll + dlse)[:, None] * p - jnp.where(is_target, dnll[:, None], 0)
            d = d.astype(x.dtype)
            dx = lax.psum(product("cv,vd->cd", d, table), "tp")
            return total + product("cv,cd->vd", d, x), dx.astype(x.dtype)

        work = _chunks((x, targets, lse, dnll, dlse), chunk)
        dtable, dx = lax.scan(grads, jnp.zeros(table.shape, jnp.float32), work)
        dtable = lax.psum(dtable, "dp")
        dtable = lax.psum_scatter(dtable, SHARD, scatter_dimension=1, tiled=True)
        return _whole(dx, x.shape), dtable.astype(table.dtype)

    x, table, targets, lse = saved
    dnll, dlse, _ = cotangents
    specs = (ACTS, P("tp", None), TOKENS, TOKENS, TOKENS, TOKENS)
    inputs = (x, reshard(table, P("tp", None)), targets, lse)
    inputs += (reshard(dnll, TOKENS), reshard(dlse, TOKENS))
    return *manual(local, specs, (ACTS, P("tp", SHARD)))(*inputs), None


_cross_entropy.defvjp(_forward, _backward)


def _logits(x, table, target, tokens):
    """Returns this device's share of the logits, -inf outside the target's modality."""
    ids = lax.axis_index("tp") * table.shape[0] + jnp.arange(table.shape[0])
    is_text = (target < tokens.text)[:, None]
    same = jnp.where(is_text, ids < tokens.text, (ids >= tokens.text) & (ids < tokens.size))
    logits = product("cd,vd->cv", x, table.astype(x.dtype), aligned=True)
    return jnp.where(same, logits, -jnp.inf), ids == target[:, None]


def _chunks(arrays, chunk):
    """Cuts arrays B s … into pieces of at most `chunk` tokens; the last is padded with zeros."""
    tokens = arrays[0].shape[0] * arrays[0].shape[1]
    pieces = -(-tokens // chunk)
    size = -(-tokens // pieces)

    def cut(x):
        flat = x.reshape(tokens, *x.shape[2:])
        flat = jnp.pad(flat, [(0, pieces * size - tokens)] + [(0, 0)] * (flat.ndim - 1))
        return flat.reshape(pieces, size, *flat.shape[1:])

    return jax.tree.map(cut, arrays)


def _whole(x, shape):
    """Inverts `_chunks` for one array."""
    return x.reshape(-1, *x.shape[2:])[: shape[0] * shape[1]].reshape(shape)
