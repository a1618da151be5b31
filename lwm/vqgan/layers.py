"""The layers of a VQGAN.

Letters of shapes: B frames, H × W pixels, C channels, or I channels in and O channels out.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from lwm.ops.cpu.convolution import convolve, convolve_doubled, convolve_halved
from lwm.vqgan.config import GROUPS


class Conv(eqx.Module):
    """A convolution with a bias; of frames of any size."""

    kernel: Float[Array, "S S I O"]
    bias: Float[Array, " O"]

    @classmethod
    def init(cls, inputs: int, outputs: int, size: int = 3, *, key: PRNGKeyArray) -> "Conv":
        """Draws the kernel with a variance of one over its inputs."""
        draw = jax.nn.initializers.lecun_normal()
        return cls(draw(key, (size, size, inputs, outputs)), jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        """Computes in the type of `x`; beyond the edges lie zeros."""
        return convolve(x, self.kernel.astype(x.dtype)) + self.bias.astype(x.dtype)

    def halved(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        """Returns every second pixel along each side; zeros lie beyond the right and the bottom."""
        return convolve_halved(x, self.kernel.astype(x.dtype)) + self.bias.astype(x.dtype)

    def doubled(self, x: Float[Array, "B h w I"]) -> Float[Array, "B H W O"]:
        """Does what a call does, of each pixel repeated along each side."""
        return convolve_doubled(x, self.kernel.astype(x.dtype)) + self.bias.astype(x.dtype)


class GroupNorm(eqx.Module):
    """Normalises 32 groups of channels over each frame (Wu and He 2018), and gates them."""

    weight: Float[Array, " C"]
    bias: Float[Array, " C"]

    @classmethod
    def init(cls, channels: int) -> "GroupNorm":
        """Starts with a scale of 1."""
        return cls(jnp.ones(channels), jnp.zeros(channels))

    def gated(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Leaves each group with mean 0 and variance 1, scales and shifts each channel, then SiLU.

        All of it is in float32, and only what comes out is rounded.
        """
        # Hidden from each other, the three uses of `x` are no reason for XLA to write down its
        # differences or its float32: on CPU it then only reads `x` once for each.
        first = jax.lax.optimization_barrier(x)
        mean = self._over_groups(first.astype(jnp.float32))
        again, middle = jax.lax.optimization_barrier((first, mean))
        variance = self._over_groups(jnp.square(again.astype(jnp.float32) - middle))
        scale = jax.lax.rsqrt(variance + 1e-6) * self.weight
        return jax.nn.silu((x - mean) * scale + self.bias).astype(x.dtype)

    @staticmethod
    def _over_groups(x: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 C"]:
        """Returns the mean of each channel's group: over pixels first, which are many."""
        batch, _, _, channels = x.shape
        means = jnp.mean(jnp.mean(x, axis=(1, 2)).reshape(batch, GROUPS, -1), axis=2)
        return jnp.repeat(means, channels // GROUPS, axis=1)[:, None, None]


class ResBlock(eqx.Module):
    """Two convolutions, each normalised and gated before, added to what came in."""

    norm1: GroupNorm
    conv1: Conv
    norm2: GroupNorm
    conv2: Conv
    shortcut: Conv | None

    @classmethod
    def init(cls, inputs: int, outputs: int, *, key: PRNGKeyArray) -> "ResBlock":
        """Has a shortcut of 1 × 1 where the number of channels changes."""
        first, second, third = jr.split(key, 3)
        return cls(
            norm1=GroupNorm.init(inputs),
            conv1=Conv.init(inputs, outputs, key=first),
            norm2=GroupNorm.init(outputs),
            conv2=Conv.init(outputs, outputs, key=second),
            shortcut=None if inputs == outputs else Conv.init(inputs, outputs, 1, key=third),
        )

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        """Keeps the size of the frame."""
        y = self.conv1(self.norm1.gated(x))
        y = self.conv2(self.norm2.gated(y))
        return y + (x if self.shortcut is None else self.shortcut(x))
