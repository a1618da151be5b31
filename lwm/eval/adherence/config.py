"""Configuration of prompt adherence: what is asked for, and how it is generated."""

import dataclasses
from typing import TYPE_CHECKING

from lwm.errors import UserError
from lwm.world.attributes import SPLITS, Split

if TYPE_CHECKING:
    from lwm.world.world import WorldConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdherenceConfig:
    """Captions of the world that are asked for as images and videos."""

    splits: tuple[Split, ...] = SPLITS
    """Combinations of attributes as in training, or those held out from it."""
    frames: tuple[int, ...] = (1, 8)
    """Frames of what is asked for: 1 for images, more for videos."""
    samples: int = 32
    """Captions of each split and number of frames; more can be asked for later."""
    seed: int = 0
    """Seed of the world."""
    fps: float = 4.0
    """Frames per second of the videos that the captions describe."""
    most: int = 3
    """Things in a caption, at most: up to 3."""
    backgrounds: tuple[str, ...] | None = None
    """Colours of the background, such as white, which is all that vqgan-64 shows; else all."""
    sampled: bool = False
    """Samples codes with the model's own guidance and temperature; else takes the likeliest."""

    def __post_init__(self):
        """Refuses an impossible configuration.

        Raises:
            UserError: The value.
        """
        for name in ("splits", "frames"):
            if not getattr(self, name):
                raise UserError(f"{name} are empty; give at least one")
        if min(*self.frames, self.samples) < 1:
            raise UserError("frames and samples must be 1 or more")

    def world(self, split: Split, frames: int, resolution: int = 64) -> "WorldConfig":
        """Returns the configuration of the clips of a group.

        Raises:
            UserError: A value is out of range.
        """
        from lwm.world.world import WorldConfig  # which needs NumPy, and help does not

        return WorldConfig(
            split=split,
            seed=self.seed,
            frames=frames,
            resolution=resolution,
            fps=self.fps,
            most=self.most,
            backgrounds=self.backgrounds,
        )

    @property
    def groups(self) -> list[tuple[Split, int]]:
        """Each split with each number of frames, once."""
        splits = sorted(set(self.splits), key=SPLITS.index)
        return [(split, frames) for frames in sorted(set(self.frames)) for split in splits]
