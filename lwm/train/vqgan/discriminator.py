"""PatchGAN discriminator for adversarial VQGAN training (Isola et al. 2017, arXiv 1611.07004)."""

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from lwm.vqgan.layers import Conv, GroupNormSiLU


class Discriminator(eqx.Module):
    """Three convolutions, each of which halves the sides, and one that scores each patch."""

    first: Conv
    convs: tuple[Conv, ...]
    norms: tuple[GroupNormSiLU, ...]
    last: Conv

    @classmethod
    def init(cls, channels: int, width: int, *, key: PRNGKeyArray) -> "Discriminator":
        """Initialises all weights; `width` channels of the first layer double twice."""
        first, last, *keys = jr.split(key, 4)
        sizes = [(width, 2 * width), (2 * width, 4 * width)]
        return cls(
            first=Conv.init(channels, width, key=first),
            convs=tuple(Conv.init(i, o, key=k) for (i, o), k in zip(sizes, keys, strict=True)),
            norms=tuple(GroupNormSiLU.init(o) for _, o in sizes),
            last=Conv.init(4 * width, 1, key=last),
        )

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w 1"]:
        """Returns the score of each patch; above 0 it looks real."""
        x = jax.nn.silu(self.first.downsample(x))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv.downsample(x))
        return self.last(x)
