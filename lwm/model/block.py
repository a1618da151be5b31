"""One layer of the decoder."""

import equinox as eqx
import jax
import jax.random as jr
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lwm.model.attention import Attention, Packing
from lwm.model.cache import LayerCache
from lwm.model.config import LlamaConfig
from lwm.model.linear import linear
from lwm.model.norm import RMSNorm
from lwm.sharding import ACTS, SHARD


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
        self, x: Float[Array, "B S D"], turn: tuple[Array, Array], packing: Packing
    ) -> Float[Array, "B S D"]:
        """Runs over whole rows."""
        x = x + self.attention(self.attention_norm(x), turn, packing)
        return x + self.mlp(self.mlp_norm(x))

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
