"""Cross-entropy over a vocabulary split over `tp`, without the logits of a whole row in memory.

The logits of a few tokens at a time are computed, reduced and discarded, and computed again in the
backward pass. Each token is scored within its own modality: text among the text ids, vision among
the vision ids, as in LWM.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Bool, Float, Int, Shaped

from lwm.ops.cpu.product import product
from lwm.ops.stream import Stream
from lwm.sharding import SHARD, TOKENS, manual
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
    x: Float[Array, "P B s D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B S"],
    *,
    stream: Stream,
    tokens: TokenSpace,
    chunk: int,
) -> TokenLoss:
    """Scores the targets under the logits `x · tableᵀ`; differentiable in both.

    Args:
        x: States after the last layer, in the form of `stream`.
        table: The head, one row per id.
        targets: Ids; any id where no target is to be scored.
        stream: Form of the states.
        tokens: The token space.
        chunk: Tokens per device of `sp` whose logits exist at a time.
    """
    x, table = reshard(x, stream.spec), reshard(table, P("tp", SHARD))
    return TokenLoss(*_cross_entropy(x, table, reshard(targets, TOKENS), stream, tokens, chunk))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _cross_entropy(x, table, targets, stream, tokens, chunk):
    return _forward(x, table, targets, stream, tokens, chunk)[0]


def _forward(x, table, targets, stream, tokens, chunk):
    def local(x, table, targets):
        chunks = _Chunks.of(x, stream, chunk)

        def score(work):
            x, target = work
            logits, is_target = _logits(stream.gather(x)[0], table, target, tokens)
            top = lax.pmax(logits.max(-1), "tp")
            total = lax.psum(jnp.exp(logits - top[:, None]).sum(-1), "tp")
            own = lax.psum(jnp.where(is_target, logits, 0).sum(-1), "tp")
            lse = top + jnp.log(total)
            return lse - own, lse, own >= top

        scores = lax.map(score, (chunks.states(x), chunks.cut(targets)))
        return tuple(chunks.join(score, targets.shape) for score in scores)

    mapped = manual(local, (stream.spec, P("tp", None), TOKENS), (TOKENS, TOKENS, TOKENS))
    nll, lse, correct = mapped(x, reshard(table, P("tp", None)), targets)
    return (nll, lse, correct), (x, table, targets, lse)


def _backward(stream, tokens, chunk, saved, cotangents):
    def local(x, table, targets, lse, dnll, dlse):
        chunks = _Chunks.of(x, stream, chunk)

        def grads(total, work):
            x, target, lse, dnll, dlse = work
            x = stream.gather(x)[0]
            logits, is_target = _logits(x, table, target, tokens)
            p = jnp.exp(logits - lse[:, None])
            d = (dnll + dlse)[:, None] * p - jnp.where(is_target, dnll[:, None], 0)
            d = d.astype(x.dtype)
            dx = stream.scatter(product("cv,vd->cd", d, table)[None])
            return total + product("cv,cd->vd", d, x), dx.astype(x.dtype)

        work = chunks.states(x), *map(chunks.cut, (targets, lse, dnll, dlse))
        dtable, dx = lax.scan(grads, jnp.zeros(table.shape, jnp.float32), work)
        dtable = lax.psum(dtable, "dp")
        dtable = lax.psum_scatter(dtable, SHARD, scatter_dimension=1, tiled=True)
        return chunks.whole(dx, x.shape), dtable.astype(table.dtype)

    x, table, targets, lse = saved
    dnll, dlse, _ = cotangents
    specs = (stream.spec, P("tp", None), TOKENS, TOKENS, TOKENS, TOKENS)
    inputs = (x, reshard(table, P("tp", None)), targets, lse)
    inputs += (reshard(dnll, TOKENS), reshard(dlse, TOKENS))
    return *manual(local, specs, (stream.spec, P("tp", SHARD)))(*inputs), None


_cross_entropy.defvjp(_forward, _backward)


def _logits(x, table, target, tokens):
    """Returns this device's share of the logits, -inf outside the target's modality."""
    ids = lax.axis_index("tp") * table.shape[0] + jnp.arange(table.shape[0])
    is_text = (target < tokens.text)[:, None]
    same = jnp.where(is_text, ids < tokens.text, (ids >= tokens.text) & (ids < tokens.size))
    logits = product("cd,vd->cv", x, table.astype(x.dtype), aligned=True)
    return jnp.where(same, logits, -jnp.inf), ids == target[:, None]


class _Chunks(NamedTuple):
    """Chunks of the tokens on one device of `sp`, of which each device of `tp` holds a share.

    The last chunk is padded with zeros.
    """

    stream: Stream
    count: int
    parts: int
    """Shares of a chunk."""
    size: int
    """Tokens of a share."""

    @classmethod
    def of(cls, x: Float[Array, "P b t D"], stream: Stream, chunk: int) -> "_Chunks":
        parts = lax.axis_size("tp") if stream.is_split else 1
        share = math.prod(x.shape[:-1])
        count = min(share, -(-share * parts // chunk))
        return cls(stream, count, parts, -(-share // count))

    def states(self, x: Float[Array, "P b t D"]) -> Float[Array, "count 1 size D"]:
        """Cuts the states that this device holds."""
        return self._padded(x.reshape(-1, x.shape[-1])).reshape(self.count, 1, self.size, -1)

    def whole(self, x: Float[Array, "count 1 size D"], shape: tuple) -> Float[Array, "P b t D"]:
        """Inverts `states`."""
        return x.reshape(-1, x.shape[-1])[: math.prod(shape[:-1])].reshape(shape)

    def cut(self, x: Shaped[Array, "b s"]) -> Shaped[Array, "count chunk"]:
        """Cuts numbers of tokens in the order in which the shares of the states are gathered."""
        pieces = self.stream.cut(x)
        shares = pieces.reshape(*pieces.shape[:2], self.parts, -1)
        flat = self._padded(shares.transpose(0, 1, 3, 2).reshape(-1, self.parts))
        return flat.reshape(self.count, self.size, -1).swapaxes(1, 2).reshape(self.count, -1)

    def join(self, x: Shaped[Array, "count chunk"], shape: tuple) -> Shaped[Array, "b s"]:
        """Inverts `cut`."""
        flat = x.reshape(self.count, self.parts, -1).swapaxes(1, 2).reshape(-1, self.parts)
        rows, pieces = shape[0], self.stream.pieces
        shares = flat[: math.prod(shape) // self.parts].reshape(pieces, rows, -1, self.parts)
        return self.stream.join(shares.swapaxes(2, 3).reshape(pieces, rows, -1))

    def _padded(self, x: Shaped[Array, "share n"]) -> Shaped[Array, "padded n"]:
        return jnp.pad(x, ((0, self.count * self.size - len(x)), (0, 0)))
