"""The key/value cache: passed in and returned, never hidden.

Every row of a batch writes the same slot at the same time. Which slots hold a token of the row's
own document is data (`segments`), so left padding, prompts of unequal length and a gap between
two turns need no special case.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jax.sharding import reshard
from jaxtyping import Array, Float, Int, UInt16

from lwm.model.config import LlamaConfig
from lwm.ops import EMPTY
from lwm.ops.blockwise import CACHE_TILE
from lwm.ops.cpu.bits import stored_as
from lwm.ops.decode import BLOCK
from lwm.sharding import CACHE, ROWS


class LayerCache(eqx.Module):
    """The keys and values of one layer, head-major: decoding reads one head in a run.

    Keys lie transposed, so that a query meets them in the order of a matrix product. Bfloat16 is
    held as bits (`lwm.ops.cpu.bits`).
    """

    keys: Float[Array, "B K H T"] | UInt16[Array, "B K H T"]
    values: Float[Array, "B K T H"] | UInt16[Array, "B K T H"]


class KVCache(eqx.Module):
    """What a model has read so far, of every layer, with the place of each token."""

    layers: tuple[LayerCache, ...]
    segments: Int[Array, "B T"]
    length: Int[Array, ""]
    """Slots in use; the next token goes to this one."""

    @classmethod
    def empty(cls, config: LlamaConfig, *, rows: int, slots: int) -> "KVCache":
        """Makes room for at least `slots` tokens in each of `rows` rows."""
        slots = _whole_blocks(slots)

        def room(*shape: int) -> Array:
            shape = rows, config.num_kv_heads, *shape
            return jnp.zeros(shape, stored_as(jnp.dtype(config.dtype)), out_sharding=CACHE)

        H = config.head_dim
        return cls(
            layers=tuple(
                LayerCache(room(H, slots), room(slots, H)) for _ in range(config.num_layers)
            ),
            segments=jnp.full((rows, slots), EMPTY, jnp.int32, out_sharding=ROWS),
            length=jnp.zeros((), jnp.int32),
        )

    @property
    def slots(self) -> int:
        """How many tokens a row has room for."""
        return self.segments.shape[1]

    def tokens(self) -> Int[Array, " B"]:
        """Counts the tokens that each row holds: the next one's position."""
        return jnp.sum(self.segments != EMPTY, axis=1)

    def grow(self, slots: int) -> "KVCache":
        """Returns the cache with room for at least `slots` tokens, not fewer than it has.

        Each array is given up once it is copied, so that the whole never exists twice.
        """
        more = max(0, _whole_blocks(slots) - self.slots)
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
        """Forgets every slot from `length` on."""
        kept = jnp.arange(self.slots) < length
        segments = jnp.where(kept[None, :], self.segments, EMPTY)
        return KVCache(self.layers, reshard(segments, ROWS), jnp.asarray(length, jnp.int32))


def _whole_blocks(slots: int) -> int:
    """Rounds up to what is read at a time, by decoding or by reading many tokens."""
    tile = math.lcm(BLOCK, CACHE_TILE)
    return -(-slots // tile) * tile
