"""The layers of a VQGAN (Esser et al. 2021, arXiv 2012.09841).

Axes: B frames, H × W positions, C channels, I input channels, O output channels, S × S kernel.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from lwm.ops.cpu.convolution import convolve, convolve_doubled, convolve_halved
from lwm.ops.cpu.product import product
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


class GroupNorm(eqx.Module):
    """Group normalisation of 32 groups (Wu and He 2018, arXiv 1803.08494)."""

    weight: Float[Array, " C"]
    bias: Float[Array, " C"]

    @classmethod
    def init(cls, channels: int) -> "GroupNorm":
        """Starts with a scale of 1 and a shift of 0."""
        return cls(jnp.ones(channels), jnp.zeros(channels))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Normalises each group of a frame, and scales and shifts each channel.

        Computes in float32; the result has the type of `x`.
        """
        return self._normalised(x).astype(x.dtype)

    def _normalised(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        # The barriers hide the three uses of `x` from each other. Otherwise XLA on CPU stores the
        # differences or the float32 copy; so it reads `x` three times and stores neither.
        first = jax.lax.optimization_barrier(x)
        mean = self._over_groups(first.astype(jnp.float32))
        again, middle = jax.lax.optimization_barrier((first, mean))
        variance = self._over_groups(jnp.square(again.astype(jnp.float32) - middle))
        scale = jax.lax.rsqrt(variance + 1e-6) * self.weight
        return (x - mean) * scale + self.bias

    @staticmethod
    def _over_groups(x: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 C"]:
        """Returns the mean of each channel's group; averages over pixels first, then channels."""
        batch, _, _, channels = x.shape
        means = jnp.mean(jnp.mean(x, axis=(1, 2)).reshape(batch, GROUPS, -1), axis=2)
        return jnp.repeat(means, channels // GROUPS, axis=1)[:, None, None]


class GroupNormSiLU(GroupNorm):
    """Group normalisation followed by SiLU."""

    @classmethod
    def init(cls, channels: int) -> "GroupNormSiLU":
        """Starts as `GroupNorm` does."""
        return cls(jnp.ones(channels), jnp.zeros(channels))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Normalises as `GroupNorm` does, and applies SiLU."""
        return jax.nn.silu(self._normalised(x)).astype(x.dtype)


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


class Attention(eqx.Module):
    """A residual block in which all positions of a frame attend to each other, with one head."""

    norm: GroupNorm
    query: Conv
    key: Conv
    value: Conv
    out: Conv

    @classmethod
    def init(cls, channels: int, *, key: PRNGKeyArray) -> "Attention":
        """Samples the kernels, which are 1 × 1."""
        convs = (Conv.init(channels, channels, 1, key=each) for each in jr.split(key, 4))
        return cls(GroupNorm.init(channels), *convs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Returns `x` plus what its positions attend to; scores and softmax are in float32."""
        batch, _, _, channels = x.shape
        y = self.norm(x)
        query, key, value = (
            conv(y).reshape(batch, -1, channels) for conv in (self.query, self.key, self.value)
        )
        shares = jax.nn.softmax(product("bqc,bkc->bqk", query, key) * channels**-0.5)
        mixed = product("bqk,bkc->bqc", shares.astype(x.dtype), value)
        return x + self.out(mixed.astype(x.dtype).reshape(x.shape))
