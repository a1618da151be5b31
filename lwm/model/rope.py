"""Rotary position embedding, always in float32; pairs are (i, i + H/2), as in Hugging Face."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lwm.model.config import LinearScaling, Rope, RopeScaling


def inverse_frequencies(rope: Rope, head_dim: int) -> Float[np.ndarray, " R"]:
    """Returns θ^(-2i/H) for each rotated pair, in radians per token.

    Computed on the host: a jitted power differs by one ulp, and at position 1M one ulp of the
    first frequencies is 0.06 rad.
    """
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / head_dim
    frequencies = (1.0 / rope.theta**exponents).astype(np.float32)
    if isinstance(rope.scaling, LinearScaling):
        return (frequencies / rope.scaling.factor).astype(np.float32)
    return frequencies if rope.scaling is None else _stretch(frequencies, rope.scaling)


def _stretch(frequencies: Float[np.ndarray, " R"], scaling: RopeScaling) -> Float[np.ndarray, " R"]:
    """Divides low frequencies by the factor, keeps high ones, and interpolates between them."""
    rotations = scaling.original_context * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((rotations - scaling.low_freq_factor) / span, 0.0, 1.0)
    return (frequencies * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def rotation(
    positions: Int[Array, "B S"], rope: Rope, head_dim: int
) -> tuple[Float[Array, "B S R"], Float[Array, "B S R"]]:
    """Returns the cosine and sine of the rotation angle of each pair of each token."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(rope, head_dim)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B S N H"], cos: Float[Array, "B S R"], sin: Float[Array, "B S R"]
) -> Float[Array, "B S N H"]:
    """Rotates pair (i, i + H/2) of every head by the token's angle."""
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
