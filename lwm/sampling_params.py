"""Sampling parameters of a request: of text, and of the codes of images and videos."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lwm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How an answer is written."""

    max_tokens: int = 512
    """Tokens that the answer may have; they are kept free in the context."""
    temperature: float = 0.0
    """Randomness; 0 takes the most likely token each time."""
    top_k: int = 0
    """Draw from this many likeliest tokens only; 0 is all."""
    top_p: float = 1.0
    """Draw from the fewest tokens that have this probability together."""
    min_p: float = 0.0
    """Draw from tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer become less likely."""
    seed: int = 0
    """The same seed, from 0 to 2³² - 1, draws the same answer, whatever the batch."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""

    def __post_init__(self):
        """Refuses what no answer can be written with.

        Raises:
            UserError: The value.
        """
        if self.max_tokens < 1:
            raise UserError(f"max_tokens {self.max_tokens} leaves no room for an answer")
        for name, allowed, wanted in (
            # Below, logits overflow, and it would not be the likeliest token that is taken.
            (
                "temperature",
                self.temperature == 0 or 1e-4 <= self.temperature < math.inf,
                "0 or a number from 0.0001 up",
            ),
            ("top_k", self.top_k >= 0, "0 (all) or above"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "from 0.01 to 100"),
            ("seed", 0 <= self.seed < 2**32, "from 0 to 4294967295"),
            ("stop", all(self.stop), "texts of at least one character"),
        ):
            if not allowed:
                raise UserError(f"{name} {getattr(self, name)} must be {wanted}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """How the codes of a frame are drawn; what is not said here the model says, or LWM's scripts.

    Those have guidance 5 and top-k 8192 for an image, 1 and 1000 for the frames of a video.
    """

    guidance: float | None = None
    """How far to go away from what would be drawn without the prompt; 1 is no guidance."""
    temperature: float | None = None
    """Randomness; 0 takes the most likely code each time."""
    top_k: int | None = None
    """Draw from this many likeliest codes only; 0 is all."""
    top_p: float | None = None
    """Draw from the fewest codes that have this probability together."""

    def __post_init__(self):
        """Refuses what nothing can be drawn with.

        Raises:
            UserError: The value.
        """
        if self.guidance is not None and not 0 <= self.guidance <= 1000:
            raise UserError(f"guidance {self.guidance} must be from 0 to 1000; 1 is none")
        self.writing()

    def writing(self) -> SamplingParams:
        """Returns the same rules, as they are for text; those that are not said change nothing."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
        )

    def over(self, default: "FrameSampling") -> "FrameSampling":
        """Returns this, and `default` where nothing is said."""
        said = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(default, **said)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSampling:
    """How images and videos are drawn."""

    image: FrameSampling = FrameSampling()
    """An image, and the first frame of a video."""
    video: FrameSampling = FrameSampling()
    """The frames after the first."""

    @classmethod
    def of(cls, values: Any) -> "VisionSampling":
        """Reads what a model says in its `generation_config.json`.

        Raises:
            UserError: It says what nothing can be drawn with.
        """
        if not isinstance(values, Mapping):
            return cls()
        try:
            return cls(**{kind: FrameSampling(**how) for kind, how in values.items()})
        except TypeError:
            raise UserError(
                "its way of drawing is not known here; mend it or leave it out"
            ) from None

    def over(self, default: "VisionSampling") -> "VisionSampling":
        """Returns these, and `default` where nothing is said."""
        return VisionSampling(
            image=self.image.over(default.image), video=self.video.over(default.video)
        )

    def unguided(self) -> "VisionSampling":
        """Returns these with no guidance where none is said."""
        none = FrameSampling(guidance=1.0)
        return self.over(VisionSampling(image=none, video=none))

    @property
    def are_guided(self) -> bool:
        """Whether rows without the prompt are needed."""
        return any(each.guidance not in (None, 1) for each in (self.image, self.video))


LWM_SAMPLING = VisionSampling(
    image=FrameSampling(guidance=5.0, temperature=1.0, top_k=8192, top_p=1.0),
    video=FrameSampling(guidance=1.0, temperature=1.0, top_k=1000, top_p=1.0),
)
"""How LWM's scripts draw."""
