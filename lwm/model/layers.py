"""Parts of a decoder layer: RMSNorm, Attention, MLP and Block; and Packing, the layout of rows."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import PartitionSpec as P, get_abstract_mesh, reshard
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lwm.model.config import LlamaConfig
from lwm.model.linear import linear
from lwm.model.pool import LayerPages, Place
from lwm.model.rope import rotate
from lwm.ops.mask import Mask
from lwm.ops.ring import ring_attention
from lwm.ops.stream import Stream, region
from lwm.sharding import HEADS, SHARD, TOKENS

Turn = Callable[[Int[Array, "B S"]], tuple[Float[Array, "B S R"], Float[Array, "B S R"]]]
"""Returns the cosines and sines of positions."""


class Packing(eqx.Module):
    """Document of each token in packed rows, its position there, and its index in the row."""

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
        """Returns the causal mask: a token sees its own document up to itself."""
        return Mask(self.index, self.index, self.segments, self.segments)


class RMSNorm(eqx.Module):
    """Root-mean-square normalisation of the last dimension in float32 (Zhang and Sennrich 2019)."""

    weight: Float[Array, " D"]
    eps: float = eqx.field(static=True)

    @classmethod
    def init(cls, dim: int, eps: float) -> "RMSNorm":
        """Initialises the scale to 1."""
        return cls(jnp.ones(dim), eps)

    @jax.named_scope("norm")
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last dimension."""
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(x.dtype) * self.weight.astype(x.dtype)


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
        """Samples projections from N(0, init_std²); biases start at 0."""
        D, N, K, H = config.dim, config.num_heads, config.num_kv_heads, config.head_dim
        keys = jr.split(key, 4)

        def into(key: PRNGKeyArray, heads: int) -> Array:
            # Sampled where they lie: on each device, the others' part would take its memory.
            parts = P(SHARD, "tp", None)
            return config.init_std * jr.normal(key, (D, heads, H), out_sharding=parts)

        def bias(heads: int) -> Array | None:
            return reshard(jnp.zeros((heads, H)), P("tp", None)) if config.qkv_bias else None

        def norm() -> RMSNorm | None:
            return RMSNorm.init(H, config.norm_eps) if config.qk_norm else None

        out = config.init_std * jr.normal(keys[3], (N, H, D), out_sharding=P("tp", None, SHARD))
        return cls(
            wq=into(keys[0], N),
            wk=into(keys[1], K),
            wv=into(keys[2], K),
            wo=out,
            bq=bias(N),
            bk=bias(K),
            bv=bias(K),
            q_norm=norm(),
            k_norm=norm(),
        )

    @jax.named_scope("attention")
    def extend(
        self,
        x: Float[Array, "B S D"],
        cos_sin: tuple[Array, Array],
        layer: LayerPages,
        place: Place,
    ) -> tuple[Float[Array, "B S D"], LayerPages]:
        """Writes S new tokens to the pages of their rows and attends to all of these."""
        out, layer = layer.attend(*self.project(x, cos_sin), place)
        return linear(out, self.wo, out_sharding=_states_spec(out)), layer

    @jax.named_scope("attention")
    def project(
        self, x: Float[Array, "B S D"], cos_sin: tuple[Array, Array]
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Returns queries, keys and values, rotated to their positions."""
        q = linear(x, self.wq, bias=self.bq)
        k = linear(x, self.wk, bias=self.bk)
        v = linear(x, self.wv, bias=self.bv)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, *cos_sin), rotate(k, *cos_sin), v


class MLP(eqx.Module):
    """Gated feed-forward layer, SwiGLU (Shazeer 2020); its columns are split over `tp`."""

    w_gate: Float[Array, "D F"]
    w_up: Float[Array, "D F"]
    w_down: Float[Array, "F D"]

    @classmethod
    def init(cls, config: LlamaConfig, *, key: PRNGKeyArray) -> "MLP":
        """Samples all weights from N(0, init_std²)."""
        D, F = config.dim, config.mlp_dim
        into, back = P(SHARD, "tp"), P("tp", SHARD)
        gate, up, down = (
            config.init_std * jr.normal(key, shape, out_sharding=parts)
            for key, shape, parts in zip(
                jr.split(key, 3), ((D, F), (D, F), (F, D)), (into, into, back), strict=True
            )
        )
        return cls(gate, up, down)

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Applies the layer to each token."""
        hidden = jax.nn.silu(linear(x, self.w_gate)) * linear(x, self.w_up)
        return linear(hidden, self.w_down, out_sharding=_states_spec(x))


def _states_spec(x: Float[Array, "B S ..."]) -> P | None:
    """Returns the spec of states whose rows and tokens are split as those of `x`.

    None in the region of one device, where a sum is the share of this device.
    """
    if get_abstract_mesh().manual_axes:
        return None
    return P(*jax.typeof(x).sharding.spec[:2], None)


class Block(eqx.Module):
    """Decoder layer: attention, then feed-forward; each with a norm before and a residual sum."""

    attention_norm: RMSNorm
    attention: Attention
    mlp_norm: RMSNorm
    mlp: MLP

    @classmethod
    def init(cls, config: LlamaConfig, *, key: PRNGKeyArray) -> "Block":
        """Samples the weights of the layer."""
        attention, mlp = jr.split(key)
        return cls(
            attention_norm=RMSNorm.init(config.dim, config.norm_eps),
            attention=Attention.init(config, key=attention),
            mlp_norm=RMSNorm.init(config.dim, config.norm_eps),
            mlp=MLP.init(config, key=mlp),
        )

    def __call__(
        self,
        x: Float[Array, "P B s D"],
        turn: Turn,
        packing: Packing,
        stream: Stream,
    ) -> Float[Array, "P B s D"]:
        """Runs over whole rows, whose states have the form of `stream`.

        Args:
            x: States.
            turn: Returns the cosines and sines of positions, see `lwm.model.rope.rotation`.
            packing: Layout of the rows.
            stream: Form of the states.
        """
        out = ring_attention(*self._heads(x, turn, packing, stream), packing.mask())
        return self._after_attention(x, out, stream)

    def _heads(
        self, x: Float[Array, "P B s D"], turn: Turn, packing: Packing, stream: Stream
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Returns queries, keys and values of whole rows."""

        def local(weights, x, positions):
            norm, attention = weights

            def project(x, positions):
                return attention.project(stream.gather(norm(x)), turn(positions))

            found = stream.each(project, x, stream.cut(positions))
            return tuple(map(stream.join, found))

        return region(
            local,
            (self.attention_norm, eqx.tree_at(lambda heads: heads.wo, self.attention, None)),
            x,
            packing.positions,
            in_specs=(stream.spec, TOKENS),
            out_specs=(HEADS, HEADS, HEADS),
            dtype=x.dtype,
        )

    def _after_attention(
        self, x: Float[Array, "P B s D"], out: Float[Array, "B S N H"], stream: Stream
    ) -> Float[Array, "P B s D"]:
        """Adds what the heads found, and then the feed-forward layer."""

        def local(weights, x, out):
            wo, norm, mlp = weights

            def finish(x, out):
                x = x + stream.scatter(linear(out, wo))
                return x + stream.scatter(mlp(stream.gather(norm(x))))

            return stream.each(finish, x, stream.cut(out))

        return region(
            local,
            (self.attention.wo, self.mlp_norm, self.mlp),
            x,
            out,
            in_specs=(stream.spec, HEADS),
            out_specs=stream.spec,
            dtype=x.dtype,
        )

    def extend(
        self,
        x: Float[Array, "B S D"],
        cos_sin: tuple[Array, Array],
        layer: LayerPages,
        place: Place,
    ) -> tuple[Float[Array, "B S D"], LayerPages]:
        """Runs over S tokens that follow those in the pages of their rows."""
        out, layer = self.attention.extend(self.attention_norm(x), cos_sin, layer, place)
        x = x + out
        return x + self.mlp(self.mlp_norm(x)), layer
