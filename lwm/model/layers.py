"""Parts of a decoder layer: RMSNorm, Attention, MLP and Block; and Packing, the layout of rows."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lwm.model.config import LlamaConfig
from lwm.model.linear import linear
from lwm.model.pool import LayerPages, Place
from lwm.model.rope import rotate
from lwm.ops.mask import Mask
from lwm.ops.ring import ring_attention
from lwm.sharding import ACTS, BATCH, SHARD, TOKENS


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

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "B S D"], cos_sin: tuple[Array, Array], packing: Packing
    ) -> Float[Array, "B S D"]:
        """Attends within whole, possibly packed, rows."""
        return self._merge(ring_attention(*self._project(x, cos_sin), packing.mask()))

    @jax.named_scope("attention")
    def extend(
        self,
        x: Float[Array, "B S D"],
        cos_sin: tuple[Array, Array],
        layer: LayerPages,
        place: Place,
    ) -> tuple[Float[Array, "B S D"], LayerPages]:
        """Writes S new tokens to the pages of their rows and attends to all of these."""
        out, layer = layer.attend(*self._project(x, cos_sin), place)
        return self._merge(out), layer

    def _project(
        self, x: Float[Array, "B S D"], cos_sin: tuple[Array, Array]
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        q = linear(x, self.wq, bias=self.bq)
        k = linear(x, self.wk, bias=self.bk)
        v = linear(x, self.wv, bias=self.bv)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, *cos_sin), rotate(k, *cos_sin), v

    def _merge(self, out: Float[Array, "B S N H"]) -> Float[Array, "B S D"]:
        return linear(out, self.wo, out_sharding=_states_spec(out))


class MLP(eqx.Module):
    """Gated feed-forward layer, SwiGLU (Shazeer 2020); its columns are split over `tp`."""

    w_gate: Float[Array, "D F"]
    w_up: Float[Array, "D F"]
    w_down: Float[Array, "F D"]

    @classmethod
    def init(cls, config: LlamaConfig, *, key: PRNGKeyArray) -> "MLP":
        """Samples all weights from N(0, init_std²)."""
        D, F = config.dim, config.mlp_dim
        gate, up, down = (
            config.init_std * jr.normal(key, shape)
            for key, shape in zip(jr.split(key, 3), ((D, F), (D, F), (F, D)), strict=True)
        )
        into = P(SHARD, "tp")
        return cls(reshard(gate, into), reshard(up, into), reshard(down, P("tp", SHARD)))

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Applies the layer to each token."""
        hidden = jax.nn.silu(linear(x, self.w_gate)) * linear(x, self.w_up)
        return linear(hidden, self.w_down, out_sharding=_states_spec(x))

    def gathered(self) -> "MLP":
        """Returns the layer with weights gathered over all axes but `tp`, once for many chunks."""
        into, out = P(None, "tp"), P("tp", None)
        return MLP(reshard(self.w_gate, into), reshard(self.w_up, into), reshard(self.w_down, out))


def _states_spec(x: Float[Array, "B S ..."]) -> P:
    """Returns the spec of states whose rows and tokens are split as those of `x`."""
    return P(*jax.typeof(x).sharding.spec[:2], None)


def by_chunks(
    run: Callable[[Float[Array, "B s D"]], Float[Array, "B s D"]],
    x: Float[Array, "B S D"],
    *,
    chunk: int | None,
) -> Float[Array, "B S D"]:
    """Applies a token-wise function in chunks of at most `chunk` tokens per device.

    Intermediate results of `run` are not saved: the backward pass computes them again, chunk by
    chunk (Liu and Abbeel 2023, Blockwise Parallel Transformer, arXiv 2305.19370).
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

    chunks = jnp.reshape(x, (rows, sp, pieces, -1, dim), out_sharding=parts)
    done = jnp.moveaxis(jax.lax.map(one, jnp.moveaxis(chunks, 2, 0)), 0, 2)
    return jnp.reshape(done, x.shape, out_sharding=ACTS)


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
        x: Float[Array, "B S D"],
        cos_sin: tuple[Array, Array],
        packing: Packing,
        *,
        mlp_chunk: int | None = None,
    ) -> Float[Array, "B S D"]:
        """Runs over whole rows; the feed-forward layer takes `mlp_chunk` tokens per device."""
        x = x + self.attention(self.attention_norm(x), cos_sin, packing)
        mlp = self.mlp if mlp_chunk is None else self.mlp.gathered()
        return x + by_chunks(lambda x: mlp(self.mlp_norm(x)), x, chunk=mlp_chunk)

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
