"""Key/value cache: an argument and a result, never hidden state.

All rows of a batch write the same slot at the same time. The segment of each slot is data, so left
padding, prompts of unequal length and gaps between turns need no special case. Only this file
depends on the memory layout of keys and values.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Float, Int, UInt16

from lwm.model.config import Dtype, LlamaConfig
from lwm.ops.blockwise import CACHE_TILE, read_cache
from lwm.ops.cpu.bits import stored_as, to_bits
from lwm.ops.decode import BLOCK, decode_attention
from lwm.ops.mask import EMPTY, Mask
from lwm.sharding import CACHE, HEADS, ROWS, manual


class Slots(NamedTuple):
    """Slots of new tokens, the same for every layer."""

    segments: Int[Array, "B T"]
    """Segment of the token in each slot of the cache, the new tokens included."""
    first: Int[Array, ""]
    """Slot of the first new token; the others follow."""


class LayerCache(eqx.Module):
    """Keys and values of one layer, head-major: decoding reads one head contiguously.

    Keys are stored transposed, in the order in which a matrix product with a query reads them.
    Bfloat16 is held as bits (`lwm.ops.cpu.bits`).
    """

    keys: Float[Array, "B K H T"] | UInt16[Array, "B K H T"]
    values: Float[Array, "B K T H"] | UInt16[Array, "B K T H"]

    def attend(
        self,
        q: Float[Array, "B S N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        where: Slots,
    ) -> tuple[Float[Array, "B S N H"], "LayerCache"]:
        """Stores the keys and values of new tokens, and attends from them to the whole cache."""

        def local(q, k, v, keys, values, segments, first):
            length = q.shape[1]
            k, v = to_bits(k.transpose(0, 2, 3, 1)), to_bits(v.transpose(0, 2, 1, 3))
            keys = jax.lax.dynamic_update_slice(keys, k, (0, 0, 0, first))
            values = jax.lax.dynamic_update_slice(values, v, (0, 0, first, 0))
            if length == 1:
                return decode_attention(q, keys, values, segments, first), keys, values
            mask = Mask(
                q_index=first + jnp.arange(length),
                k_index=jnp.arange(keys.shape[3]),
                q_segments=jax.lax.dynamic_slice_in_dim(segments, first, length, axis=1),
                k_segments=segments,
            )
            return read_cache(q, keys, values, mask), keys, values

        mapped = manual(
            local,
            in_specs=(HEADS, HEADS, HEADS, CACHE, CACHE, ROWS, P()),
            out_specs=(HEADS, CACHE, CACHE),
        )
        out, keys, values = mapped(q, k, v, self.keys, self.values, *where)
        return out, LayerCache(keys, values)


class KVCache(eqx.Module):
    """Keys and values of all layers, and the segment of each token."""

    layers: tuple[LayerCache, ...]
    segments: Int[Array, "B T"]
    length: Int[Array, ""]
    """Number of slots in use, and so the slot of the next token."""

    @classmethod
    def empty(cls, config: LlamaConfig, dtype: Dtype, *, rows: int, slots: int) -> "KVCache":
        """Allocates at least `slots` tokens in each of `rows` rows."""
        slots = whole_blocks(slots)

        def zeros(*shape: int) -> Array:
            shape = rows, config.num_kv_heads, *shape
            return jnp.zeros(shape, stored_as(jnp.dtype(dtype)), out_sharding=CACHE)

        H = config.head_dim
        return cls(
            layers=tuple(
                LayerCache(zeros(H, slots), zeros(slots, H)) for _ in range(config.num_layers)
            ),
            segments=jnp.full((rows, slots), EMPTY, jnp.int32, out_sharding=ROWS),
            length=jnp.zeros((), jnp.int32),
        )

    @property
    def slots(self) -> int:
        """Number of tokens that fit in each row."""
        return self.segments.shape[1]

    def tokens(self) -> Int[Array, " B"]:
        """Returns the number of tokens in each row, which is the position of the next one."""
        return jnp.sum(self.segments != EMPTY, axis=1)

    def claim(self, segments: Int[Array, "B S"]) -> tuple[Slots, Int[Array, "B S"]]:
        """Returns the slots of S new tokens, and each token's position in its own row."""
        segments = reshard(segments, ROWS)
        positions = self.tokens()[:, None] + jnp.cumsum(segments != EMPTY, axis=1) - 1
        slots = jax.lax.dynamic_update_slice(self.segments, segments, (0, self.length))
        return Slots(slots, self.length), positions

    def extended(self, layers: Sequence[LayerCache], where: Slots, *, num_tokens: int) -> "KVCache":
        """Returns the cache after every layer has stored the new tokens."""
        return KVCache(tuple(layers), where.segments, where.first + num_tokens)

    def grow(self, slots: int) -> "KVCache":
        """Returns the cache with room for at least `slots` tokens a row; it never shrinks.

        Each array is deleted once it is copied, so that the whole cache never exists twice.
        """
        more = max(0, whole_blocks(slots) - self.slots)
        if not more:
            return self

        def lengthen(old: Array, axis: int, value: int = 0) -> Array:
            widths = [(0, more if each == axis else 0) for each in range(old.ndim)]
            new = jnp.pad(old, widths, constant_values=value).block_until_ready()
            old.delete()
            return new

        layers = tuple(
            LayerCache(lengthen(layer.keys, 3), lengthen(layer.values, 2)) for layer in self.layers
        )
        return KVCache(layers, lengthen(self.segments, 1, EMPTY), self.length)

    def rewind(self, length: int) -> "KVCache":
        """Returns the cache without the slots from `length` on."""
        kept = jnp.arange(self.slots) < length
        segments = jnp.where(kept[None, :], self.segments, EMPTY)
        return KVCache(self.layers, reshard(segments, ROWS), jnp.asarray(length, jnp.int32))


def whole_blocks(slots: int) -> int:
    """Rounds up to a multiple of both tile sizes: that of decoding and that of reading a prompt."""
    tile = math.lcm(BLOCK, CACHE_TILE)
    return -(-slots // tile) * tile
