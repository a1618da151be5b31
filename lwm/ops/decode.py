"""Attention of one new token per row to a key/value cache, reading only the slots in use."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt16

from lwm.ops.cpu.bits import from_bits

BLOCK = 256
"""Slots read at a time; the size of a cache is a multiple of it."""


def decode_attention(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "B K H T"] | UInt16[Array, "B K H T"],
    values: Float[Array, "B K T H"] | UInt16[Array, "B K T H"],
    segments: Int[Array, "B T"],
    slot: Int[Array, ""],
) -> Float[Array, "B 1 N H"]:
    """Attends from the token at `slot` to those of its segment in the slots up to it.

    The cache may hold bfloat16 as bits. An online softmax over blocks (Milakov and Gimelshein
    2018) makes the time grow with the tokens in the cache, not with its size.
    """
    B, _, N, H = q.shape
    K, T = values.shape[1:3]
    block = min(BLOCK, T)
    grouped = q.reshape(B, K, N // K, H) * jnp.asarray(H**-0.5, q.dtype)
    own = jax.lax.dynamic_slice_in_dim(segments, slot, 1, axis=1)

    def read(i, state):
        out, top, total = state
        start = i * block
        k = from_bits(jax.lax.dynamic_slice_in_dim(keys, start, block, axis=3))
        v = from_bits(jax.lax.dynamic_slice_in_dim(values, start, block, axis=2))
        seen = jax.lax.dynamic_slice_in_dim(segments, start, block, axis=1) == own
        seen &= (own >= 0) & (start + jnp.arange(block) <= slot)
        scores = jnp.einsum("bkgh,bkht->bkgt", grouped, k, preferred_element_type=jnp.float32)
        scores = jnp.where(seen[:, None, None, :], scores, -jnp.inf)
        higher = jnp.maximum(top, jnp.max(scores, axis=-1))
        # A row that has seen no key yet has -inf - -inf here.
        level = jnp.where(jnp.isfinite(higher), higher, 0.0)
        weights = jnp.exp(scores - level[..., None])
        fade = jnp.exp(top - level)
        mixed = jnp.einsum(
            "bkgt,bkth->bkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return out * fade[..., None] + mixed, higher, total * fade + jnp.sum(weights, axis=-1)

    start = (
        jnp.zeros((B, K, N // K, H), jnp.float32),
        jnp.full((B, K, N // K), -jnp.inf),
        jnp.zeros((B, K, N // K)),
    )
    out, _, total = jax.lax.fori_loop(0, slot // block + 1, read, start)
    out = out / jnp.where(total > 0, total, 1.0)[..., None]
    return out.reshape(B, 1, N, H).astype(q.dtype)
