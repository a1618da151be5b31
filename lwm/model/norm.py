"""Root-mean-square normalisation (Zhang and Sennrich 2019)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class RMSNorm(eqx.Module):
    """Divides by the root mean square of the last dimension, in float32, and scales."""

    weight: Float[Array, " D"]
    eps: float = eqx.field(static=True)

    @classmethod
    def init(cls, dim: int, eps: float) -> "RMSNorm":
        """Starts with a scale of 1."""
        return cls(jnp.ones(dim), eps)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last dimension."""
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(x.dtype) * self.weight.astype(x.dtype)
