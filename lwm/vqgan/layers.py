"""The layers of a VQGAN (Esser et al. 2021, arXiv 2012.09841).

Axes: B frames, H × W positions, C channels, I input channels, O output channels, S × S kernel.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from lwm.ops.cpu.convolution import convolve, convolve_doubled, convolve_halved
from lwm.vqgan.config import GROUPS


class Conv(eqx.Module):
    """A 2D convolution with a bias, for frames of any size."""

    kernel: Float[Array, "S S I O"]
    bias: Float[Array, " O"]

    @classmethod
    def init(cls, inputs: int, outputs: int, size: int = 3, *, key: PRNGKeyArray) -> "Conv":
        """Samples the kernel (LeCun normal); the bias is 0."""
        sample = jax.nn.initializers.lecun_normal()
        return cls(sample(key, (size, size, inputs, outputs)), jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        """Convolves with stride 1 and zero padding to the same size, in the type of `x`."""
        return convolve(x, self.kernel.astype(x.dtype)) + self.bias.astype(x.dtype)

    def downsample(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        """Convolves with stride 2; zero padding is at the right and the bottom only."""
        return convolve_halved(x, self.kernel.astype(x.dtype)) + self.bias.astype(x.dtype)

    def upsample(self, x: Float[Array, "B h w I"]) -> Float[Array, "B H W O"]:
        """Convolves the frame enlarged twofold by nearest neighbours, as a call does."""
        return convolve_doubled(x, self.kernel.astype(x.dtype)) + self.bias.astype(x.dtype)


class GroupNormSiLU(eqx.Module):
    """Group normalisation of 32 groups (Wu and He 2018, arXiv 1803.08494), followed by SiLU."""

    weight: Float[Array, " C"]
    bias: Float[Array, " C"]

    @classmethod
    def init(cls, channels: int) -> "GroupNormSiLU":
        """Starts with a scale of 1 and a shift of 0."""
        return cls(jnp.ones(channels), jnp.zeros(channels))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Normalises each group of a frame, scales and shifts each channel, and applies SiLU.

        Computes in float32; the result has the type of `x`.
        """
        # The barriers hide the three uses of `x` from each other. Otherwise XLA on CPU stores the
        # differences or the float32 copy; so it reads `x` three times and stores neither.
        first = jax.lax.optimization_barrier(x)
        mean = self._over_groups(first.astype(jnp.float32))
        again, middle = jax.lax.optimization_barrier((first, mean))
        variance = self._over_groups(jnp.square(again.astype(jnp.float32) - middle))
        scale = jax.lax.rsqrt(variance + 1e-6) * self.weight
        return jax.nn.silu((x - mean) * scale + self.bias).astype(x.dtype)

    @staticmethod
    def _over_groups(x: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 C"]:
        """Returns the mean of each channel's group; averages over pixels first, then channels."""
        batch, _, _, channels = x.shape
        means = jnp.mean(jnp.mean(x, axis=(1, 2)).reshape(batch, GROUPS, -1), axis=2)
        return jnp.repeat(means, channels // GROUPS, axis=1)[:, None, None]


class ResBlock(eqx.Module):
    """A residual block: twice GroupNorm, SiLU and a 3 × 3 convolution."""

    norm1: GroupNormSiLU
    conv1: Conv
    norm2: GroupNormSiLU
    conv2: Conv
    shortcut: Conv | None

    @classmethod
    def init(cls, inputs: int, outputs: int, *, key: PRNGKeyArray) -> "ResBlock":
        """Adds a 1 × 1 convolution to the shortcut where the number of channels changes."""
        first, second, third = jr.split(key, 3)
        return cls(
            norm1=GroupNormSiLU.init(inputs),
            conv1=Conv.init(inputs, outputs, key=first),
            norm2=GroupNormSiLU.init(outputs),
            conv2=Conv.init(outputs, outputs, key=second),
            shortcut=None if inputs == outputs else Conv.init(inputs, outputs, 1, key=third),
        )

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        """Returns `x`, or its shortcut, plus the residual."""
        y = self.conv1(self.norm1(x))
        y = self.conv2(self.norm2(y))
        return y + (x if self.shortcut is None else self.shortcut(x))
