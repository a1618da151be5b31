"""Rotary position embedding, half-split as Hugging Face stores it, always in float32."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lwm.model.config import Rope, RopeScaling


def inverse_frequencies(rope: Rope, head_dim: int) -> Float[np.ndarray, " R"]:
    """Returns θ^(-2i/H) for each rotated pair, in radians a token.

    Computed on the host: a jitted power differs by an ulp, and at position 1M an ulp of the
    first frequencies is 0.06 rad.
    """
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / head_dim
    frequencies = (1.0 / rope.theta**exponents).astype(np.float32)
    return frequencies if rope.scaling is None else _stretch(frequencies, rope.scaling)


def _stretch(frequencies: Float[np.ndarray, " R"], scaling: RopeScaling) -> Float[np.ndarray, " R"]:
    """Divides slow frequencies by the factor, keeps fast ones, and blends those between."""
    turns = scaling.original_context * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return (frequencies * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def rotation(
    positions: Int[Array, "B S"], rope: Rope, head_dim: int
) -> tuple[Float[Array, "B S R"], Float[Array, "B S R"]]:
    """Returns the cosine and sine by which each pair of each token is turned."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(rope, head_dim)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B S N H"], cos: Float[Array, "B S R"], sin: Float[Array, "B S R"]
) -> Float[Array, "B S N H"]:
    """Turns pair (i, i + H/2) of every head by the token's angle."""
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
