"""Self-attention of one layer: projections, RoPE, and attention over a row or over a cache."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lwm.model.cache import LayerCache
from lwm.model.config import LlamaConfig
from lwm.model.linear import linear
from lwm.model.norm import RMSNorm
from lwm.model.rope import rotate
from lwm.ops import Mask, decode_attention, read_cache
from lwm.ops.cpu.bits import to_bits
from lwm.ops.ring import ring_attention
from lwm.sharding import ACTS, CACHE, HEADS, ROWS, SHARD, TOKENS, manual


class Packing(eqx.Module):
    """Where each token stands: its document, its position there, and its index in the row."""

    segments: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    index: Int[Array, " S"]

    @classmethod
    def whole(cls, rows: int, length: int) -> "Packing":
        """Describes rows that hold one document each, without padding."""
        index = jnp.arange(length)
        return cls(
            segments=jnp.zeros((rows, length), jnp.int32, out_sharding=TOKENS),
            positions=reshard(jnp.broadcast_to(index, (rows, length)), TOKENS),
            index=index,
        )

    def mask(self) -> Mask:
        """Says which tokens each one sees: those before it, of its own document."""
        return Mask(self.index, self.index, self.segments, self.segments)


class Attention(eqx.Module):
    """Causal grouped-query self-attention; heads are split over `tp`."""

    wq: Float[Array, "D N H"]
    wk: Float[Array, "D K H"]
    wv: Float[Array, "D K H"]
    wo: Float[Array, "N H D"]
    bq: Float[Array, "N H"] | None
    bk: Float[Array, "K H"] | None
    bv: Float[Array, "K H"] | None
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None

    @classmethod
    def init(cls, config: LlamaConfig, *, key: PRNGKeyArray) -> "Attention":
        """Draws projections from N(0, init_std²); biases start at 0."""
        D, N, K, H = config.dim, config.num_heads, config.num_kv_heads, config.head_dim
        keys = jr.split(key, 4)

        def into(key: PRNGKeyArray, heads: int) -> Array:
            return reshard(config.init_std * jr.normal(key, (D, heads, H)), P(SHARD, "tp", None))

        def bias(heads: int) -> Array | None:
            return reshard(jnp.zeros((heads, H)), P("tp", None)) if config.qkv_bias else None

        def norm() -> RMSNorm | None:
            return RMSNorm.init(H, config.norm_eps) if config.qk_norm else None

        out = config.init_std * jr.normal(keys[3], (N, H, D))
        return cls(
            wq=into(keys[0], N),
            wk=into(keys[1], K),
            wv=into(keys[2], K),
            wo=reshard(out, P("tp", None, SHARD)),
            bq=bias(N),
            bk=bias(K),
            bv=bias(K),
            q_norm=norm(),
            k_norm=norm(),
        )

    def __call__(
        self, x: Float[Array, "B S D"], turn: tuple[Array, Array], packing: Packing
    ) -> Float[Array, "B S D"]:
        """Attends over whole rows."""
        return self._merge(ring_attention(*self._project(x, turn), packing.mask()))

    def extend(
        self,
        x: Float[Array, "B S D"],
        turn: tuple[Array, Array],
        cache: LayerCache,
        segments: Int[Array, "B T"],
        slot: Int[Array, ""],
    ) -> tuple[Float[Array, "B S D"], LayerCache]:
        """Writes S new tokens at `slot`, then attends over all that the cache holds."""
        out, cache = attend_cache(*self._project(x, turn), cache, segments, slot)
        return self._merge(out), cache

    def _project(
        self, x: Float[Array, "B S D"], turn: tuple[Array, Array]
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        q = linear(x, self.wq, bias=self.bq)
        k = linear(x, self.wk, bias=self.bk)
        v = linear(x, self.wv, bias=self.bv)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, *turn), rotate(k, *turn), v

    def _merge(self, out: Float[Array, "B S N H"]) -> Float[Array, "B S D"]:
        return linear(out, self.wo, out_sharding=ACTS)


def attend_cache(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    cache: LayerCache,
    segments: Int[Array, "B T"],
    slot: Int[Array, ""],
) -> tuple[Float[Array, "B S N H"], LayerCache]:
    """Writes `k` and `v` at `slot` and attends; `segments` already tell of the new tokens."""

    def local(q, k, v, keys, values, segments, slot):
        length = q.shape[1]
        k, v = to_bits(k.transpose(0, 2, 3, 1)), to_bits(v.transpose(0, 2, 1, 3))
        keys = jax.lax.dynamic_update_slice(keys, k, (0, 0, 0, slot))
        values = jax.lax.dynamic_update_slice(values, v, (0, 0, slot, 0))
        if length == 1:
            return decode_attention(q, keys, values, segments, slot), keys, values
        mask = Mask(
            q_index=slot + jnp.arange(length),
            k_index=jnp.arange(keys.shape[3]),
            q_segments=jax.lax.dynamic_slice_in_dim(segments, slot, length, axis=1),
            k_segments=segments,
        )
        return read_cache(q, keys, values, mask), keys, values

    mapped = manual(
        local,
        in_specs=(HEADS, HEADS, HEADS, CACHE, CACHE, ROWS, P()),
        out_specs=(HEADS, CACHE, CACHE),
    )
    out, keys, values = mapped(q, k, v, cache.keys, cache.values, segments, slot)
    return out, LayerCache(keys, values)
