"""The encoder and the decoder of a VQGAN (Esser et al. 2021, arXiv 2012.09841).

Axes: B frames, H × W pixels, h × w codes, C colour channels, Z `z_channels`; in a level I channels
in and O channels out.
"""

import itertools

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.layers import Attention, Conv, GroupNormSiLU, ResBlock


class Level(eqx.Module):
    """Residual blocks at one resolution, and the convolution that changes it; the last has none."""

    blocks: tuple[ResBlock, ...]
    resample: Conv | None
    attentions: tuple[Attention, ...] = ()
    """One after each block, or none."""

    @classmethod
    def init(
        cls,
        inputs: int,
        outputs: int,
        blocks: int,
        *,
        last: bool,
        attends: bool = False,
        key: PRNGKeyArray,
    ) -> "Level":
        """Samples all weights; the first block changes the number of channels."""
        more = jr.split(jr.fold_in(key, 1), blocks if attends else 0)
        *keys, key = jr.split(key, blocks + 1)
        sizes = [inputs] + [outputs] * (blocks - 1)
        return cls(
            tuple(ResBlock.init(i, outputs, key=k) for i, k in zip(sizes, keys, strict=True)),
            None if last else Conv.init(outputs, outputs, key=key),
            tuple(Attention.init(outputs, key=each) for each in more),
        )

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        """Applies the blocks, without the resampling."""
        for block, attention in itertools.zip_longest(self.blocks, self.attentions):
            x = block(x) if attention is None else attention(block(x))
        return x


class Encoder(eqx.Module):
    """Maps pixels to `z_channels`; each level but the last halves the sides."""

    conv_in: Conv
    levels: tuple[Level, ...]
    middle: tuple[ResBlock, ResBlock]
    norm: GroupNormSiLU
    conv_out: Conv
    middle_attention: Attention | None = None

    @classmethod
    def init(cls, config: VQGANConfig, *, key: PRNGKeyArray) -> "Encoder":
        """Samples all weights."""
        first, last, one, two, *keys = jr.split(key, 4 + len(config.widths))
        sizes = zip((config.hidden, *config.widths), config.widths, keys, strict=False)
        top = config.widths[-1]
        return cls(
            conv_in=Conv.init(config.channels, config.hidden, key=first),
            levels=tuple(
                Level.init(
                    i,
                    o,
                    config.res_blocks,
                    last=each is keys[-1],
                    attends=number in config.attention,
                    key=each,
                )
                for number, (i, o, each) in enumerate(sizes)
            ),
            middle=(ResBlock.init(top, top, key=one), ResBlock.init(top, top, key=two)),
            norm=GroupNormSiLU.init(top),
            conv_out=Conv.init(top, config.z_channels, key=last),
            middle_attention=_middle_attention(config, key),
        )

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w Z"]:
        """Maps each frame independently."""
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
            if level.resample is not None:
                x = level.resample.downsample(x)
        x = _through_middle(self, x)
        return self.conv_out(self.norm(x))


class Decoder(eqx.Module):
    """Maps `z_channels` to pixels; its levels are in the order in which they run."""

    conv_in: Conv
    middle: tuple[ResBlock, ResBlock]
    levels: tuple[Level, ...]
    norm: GroupNormSiLU
    conv_out: Conv
    middle_attention: Attention | None = None

    @classmethod
    def init(cls, config: VQGANConfig, *, key: PRNGKeyArray) -> "Decoder":
        """Samples all weights."""
        first, last, one, two, *keys = jr.split(key, 4 + len(config.widths))
        widths = config.widths[::-1]
        top = widths[0]
        return cls(
            conv_in=Conv.init(config.z_channels, top, key=first),
            middle=(ResBlock.init(top, top, key=one), ResBlock.init(top, top, key=two)),
            levels=tuple(
                Level.init(
                    i,
                    o,
                    config.res_blocks + 1,
                    last=each is keys[-1],
                    attends=len(keys) - 1 - number in config.attention,
                    key=each,
                )
                for number, (i, o, each) in enumerate(
                    zip((top, *widths), widths, keys, strict=False)
                )
            ),
            norm=GroupNormSiLU.init(config.widths[0]),
            conv_out=Conv.init(config.widths[0], config.channels, key=last),
            middle_attention=_middle_attention(config, key),
        )

    def __call__(self, x: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        """Maps each frame independently."""
        x = self.conv_in(x)
        x = _through_middle(self, x)
        for level in self.levels:
            x = level(x)
            if level.resample is not None:
                x = level.resample.upsample(x)
        return self.conv_out(self.norm(x))


def _middle_attention(config: VQGANConfig, key: PRNGKeyArray) -> Attention | None:
    if not config.middle_attention:
        return None
    return Attention.init(config.widths[-1], key=jr.fold_in(key, 1))


def _through_middle(part: "Encoder | Decoder", x: Array) -> Array:
    first, second = part.middle
    x = first(x)
    return second(x if part.middle_attention is None else part.middle_attention(x))
