"""Attention to a cache as it lies, against attention to the same keys and values in a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.ops import reference
from lwm.ops.blockwise import read_cache
from lwm.ops.cpu.bits import from_bits, stored_as, to_bits
from lwm.ops.decode import decode_attention
from lwm.ops.mask import EMPTY, Mask

T = 1024  # two tiles


def normal(dtype, *shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def cached(dtype, *, K=2, H=16):
    """Keys and values of rows of a batch, the second padded on the left and with a hole."""
    keys, values = normal(dtype, 2, 2, T, K, H)
    segments = np.zeros((2, T), np.int32)
    segments[1, :100] = EMPTY
    segments[1, 500:600] = EMPTY
    lying = to_bits(keys.transpose(0, 2, 3, 1)), to_bits(values.transpose(0, 2, 1, 3))
    return keys, values, lying, jnp.asarray(segments)


@jax.jit
def exactly(q, keys, values, mask):
    """The quadratic attention in float32."""
    wide = [x.astype(jnp.float32) for x in (q, keys, values)]
    return reference.attention(wide[0], wide[1], wide[2], mask)[0]


def tolerance(dtype):
    return 1e-5 if dtype == jnp.float32 else 2e-2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("start", "length"), [(0, 64), (490, 40), (960, 64)])
def test_reading_many_tokens(dtype, start, length):
    keys, values, lying, segments = cached(dtype)
    q = normal(dtype, 2, length, 4, 16, seed=1)
    # Slots after the new tokens hold what was read before a rewind: they must not be seen.
    later = jnp.arange(T) >= start + length
    segments = jnp.where(later, EMPTY, segments)
    own = segments[:, start : start + length]
    mask = Mask(start + jnp.arange(length), jnp.arange(T), own, segments)
    got = jax.jit(read_cache)(q, *lying, mask)
    want = exactly(q, keys, values, mask)
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=tolerance(dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("slot", [0, 300, 1023])
def test_writing_one_token(dtype, slot):
    keys, values, lying, segments = cached(dtype)
    q = normal(dtype, 2, 1, 4, 16, seed=1)
    got = jax.jit(decode_attention)(q, *lying, segments, slot)
    index, own = jnp.arange(T), segments[:, slot : slot + 1]
    mask = Mask(jnp.array([slot]), index, own, jnp.where(index <= slot, segments, EMPTY))
    want = exactly(q, keys, values, mask)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=tolerance(dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bits_are_the_same_numbers(dtype):
    x = normal(dtype, 5, 7)
    assert to_bits(x).dtype == stored_as(x.dtype)
    np.testing.assert_array_equal(from_bits(to_bits(x)), x)


def test_no_step_of_decoding_widens_a_cache_of_bfloat16():
    *_, lying, segments = cached(jnp.bfloat16)
    q = normal(jnp.bfloat16, 2, 1, 4, 16)
    text = jax.jit(decode_attention).lower(q, *lying, segments, 5).compile().as_text()
    assert text is not None
    assert f"f32[2,2,16,{T}]" not in text
    assert f"f32[2,2,{T},16]" not in text
