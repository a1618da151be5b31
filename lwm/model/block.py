"""One layer of the decoder."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lwm.model.attention import Attention, Packing
from lwm.model.cache import LayerCache
from lwm.model.config import LlamaConfig
from lwm.model.linear import linear
from lwm.model.norm import RMSNorm
from lwm.sharding import ACTS, BATCH, SHARD


class MLP(eqx.Module):
    """The gated feed-forward layer, SwiGLU (Shazeer 2020); its columns are split over `tp`."""

    w_gate: Float[Array, "D F"]
    w_up: Float[Array, "D F"]
    w_down: Float[Array, "F D"]

    @classmethod
    def init(cls, config: LlamaConfig, *, key: PRNGKeyArray) -> "MLP":
        """Draws all weights from N(0, init_std²)."""
        D, F = config.dim, config.mlp_dim
        gate, up, down = (
            config.init_std * jr.normal(key, shape)
            for key, shape in zip(jr.split(key, 3), ((D, F), (D, F), (F, D)), strict=True)
        )
        into = P(SHARD, "tp")
        return cls(reshard(gate, into), reshard(up, into), reshard(down, P("tp", SHARD)))

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Maps each token by itself."""
        hidden = jax.nn.silu(linear(x, self.w_gate)) * linear(x, self.w_up)
        return linear(hidden, self.w_down, out_sharding=ACTS)

    def gathered(self) -> "MLP":
        """Returns the layer with its weights whole but for `tp`, gathered once for many uses."""
        into, out = P(None, "tp"), P("tp", None)
        return MLP(reshard(self.w_gate, into), reshard(self.w_up, into), reshard(self.w_down, out))


def by_chunks(
    run: Callable[[Float[Array, "B s D"]], Float[Array, "B s D"]],
    x: Float[Array, "B S D"],
    *,
    chunk: int | None,
) -> Float[Array, "B S D"]:
    """Applies what maps each token by itself to at most `chunk` tokens of each device at a time.

    What `run` makes on its way is never kept: the backward pass makes it again, chunk by chunk
    (Liu and Abbeel 2023, Blockwise Parallel Transformer, arXiv 2305.19370).
    """
    rows, length, dim = x.shape
    sp = jax.sharding.get_abstract_mesh().shape["sp"]
    local = length // sp
    pieces = 1 if chunk is None else -(-local // chunk)
    while local % pieces:
        pieces += 1
    if pieces == 1:
        return run(x)
    parts = P(BATCH, "sp", None, None, None)

    @jax.checkpoint
    def one(part):
        part = jnp.reshape(part, (rows, -1, dim), out_sharding=ACTS)
        return jnp.reshape(run(part), (rows, sp, -1, dim), out_sharding=P(BATCH, "sp", None, None))

    cut = jnp.reshape(x, (rows, sp, pieces, -1, dim), out_sharding=parts)
    done = jnp.moveaxis(jax.lax.map(one, jnp.moveaxis(cut, 2, 0)), 0, 2)
    return jnp.reshape(done, x.shape, out_sharding=ACTS)


class Block(eqx.Module):
    """One layer: attention, then feed-forward, each normalised before and added after."""

    attention_norm: RMSNorm
    attention: Attention
    mlp_norm: RMSNorm
    mlp: MLP

    @classmethod
    def init(cls, config: LlamaConfig, *, key: PRNGKeyArray) -> "Block":
        """Draws the layer's weights."""
        attention, mlp = jr.split(key)
        return cls(
            attention_norm=RMSNorm.init(config.dim, config.norm_eps),
            attention=Attention.init(config, key=attention),
            mlp_norm=RMSNorm.init(config.dim, config.norm_eps),
            mlp=MLP.init(config, key=mlp),
        )

    def __call__(
        self,
        x: Float[Array, "B S D"],
        turn: tuple[Array, Array],
        packing: Packing,
        *,
        mlp_chunk: int | None = None,
    ) -> Float[Array, "B S D"]:
        """Runs over whole rows, with `mlp_chunk` tokens a device in the feed-forward layer."""
        x = x + self.attention(self.attention_norm(x), turn, packing)
        mlp = self.mlp if mlp_chunk is None else self.mlp.gathered()
        return x + by_chunks(lambda x: mlp(self.mlp_norm(x)), x, chunk=mlp_chunk)

    def extend(
        self,
        x: Float[Array, "B S D"],
        turn: tuple[Array, Array],
        cache: LayerCache,
        segments: Int[Array, "B T"],
        slot: Int[Array, ""],
    ) -> tuple[Float[Array, "B S D"], LayerCache]:
        """Runs over S tokens that follow those in the cache."""
        out, cache = self.attention.extend(self.attention_norm(x), turn, cache, segments, slot)
        x = x + out
        return x + self.mlp(self.mlp_norm(x)), cache
