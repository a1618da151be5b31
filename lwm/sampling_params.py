"""Sampling parameters of a request: of text, and of the codes of images and videos."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from lwm.errors import UserError, several

STOP_IDS = 16
"""Stop ids of a request at most, beside those of the end of text."""
BIASES = 64
"""Entries of a request's `logit_bias` at most."""
TOPS = 20
"""Likeliest ids whose log-probabilities a request gets at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Length, sampling and end of a generated text."""

    max_tokens: int | None = 512
    """Tokens of the answer at most; they are kept free in the context.

    None: the rest of the context, at most 4,096.
    """
    temperature: float = 0.0
    """Randomness; 0 takes the most likely token each time."""
    top_k: int = 0
    """Sample from this many likeliest tokens only; 0 is all."""
    top_p: float = 1.0
    """Sample from the fewest tokens whose probabilities sum to this."""
    min_p: float = 0.0
    """Sample from tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer become less likely."""
    presence_penalty: float = 0.0
    """Above 0, tokens of the answer become less likely."""
    frequency_penalty: float = 0.0
    """Above 0, tokens of the answer become less likely each time that they occur."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict, hash=False)
    """Added to the logits of tokens; -100 bans one."""
    seed: int = 0
    """From 0 to 2³² - 1; the same seed samples the same answer, whatever the batch."""
    stop: Sequence[str] = ()
    """Strings; the answer ends before the first of them."""
    stop_ids: Sequence[int] = ()
    """Tokens that end the answer, as the end of text does."""
    ignore_eos: bool = False
    """Write on after the end of text."""
    min_tokens: int = 0
    """Tokens before which neither the end of text nor a token of `stop_ids` is written."""

    def __post_init__(self):
        """Takes a single stop string as one, and refuses values out of range.

        Raises:
            UserError: The value.
        """
        object.__setattr__(self, "stop", several(self.stop))
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        for name, allowed, wanted in (
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 0, "0 or above"),
            # A lower temperature overflows logits: the likeliest token would be lost.
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
            (
                "stop",
                all(isinstance(s, str) and s for s in self.stop),
                "texts of at least one character",
            ),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "from -2 to 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "from -2 to 2"),
            (
                "logit_bias",
                len(self.logit_bias) <= BIASES
                and all(-100 <= value <= 100 for value in self.logit_bias.values()),
                f"at most {BIASES} numbers from -100 to 100",
            ),
            ("stop_ids", len(self.stop_ids) <= STOP_IDS, f"at most {STOP_IDS} ids"),
            ("min_tokens", self.min_tokens >= 0, "0 or above"),
        ):
            if not allowed:
                raise UserError(f"{name} {getattr(self, name)} must be {wanted}")


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keywords; one that is left out has its default."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    stop: Sequence[str]
    stop_ids: Sequence[int]
    ignore_eos: bool
    min_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """Sampling of a frame's codes; None: the model's own value, or that of LWM's scripts.

    LWM's scripts have guidance 5 and top-k 8192 for an image, 1 and 1000 for the frames of a video.
    """

    guidance: float | None = None
    """Classifier-free guidance scale (Ho and Salimans 2022); 1 disables it."""
    temperature: float | None = None
    """Randomness; 0 takes the most likely code each time."""
    top_k: int | None = None
    """Sample from this many likeliest codes only; 0 is all."""
    top_p: float | None = None
    """Sample from the fewest codes whose probabilities sum to this."""

    def __post_init__(self):
        """Refuses values out of range.

        Raises:
            UserError: The value.
        """
        if self.guidance is not None and not 0 <= self.guidance <= 1000:
            raise UserError(f"guidance {self.guidance} must be from 0 to 1000; 1 is none")
        self.params()

    def used(self) -> dict[str, float]:
        """Returns the values with which frames are sampled; a rule that is off has its neutral."""
        params = self.params()
        return {
            "guidance": 1.0 if self.guidance is None else self.guidance,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
        }

    def params(self) -> SamplingParams:
        """Returns the same rules as for text; a rule that is None is off."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
        )

    def over(self, default: "FrameSampling") -> "FrameSampling":
        """Returns these values, those of `default` in place of None."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(default, **given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSampling:
    """Sampling of images and videos."""

    image: FrameSampling = FrameSampling()
    """An image, and the first frame of a video."""
    video: FrameSampling = FrameSampling()
    """The frames after the first."""

    @classmethod
    def of(cls, values: Any) -> "VisionSampling":
        """Reads the values of a model's `generation_config.json`.

        Raises:
            UserError: A value is unknown or out of range.
        """
        if not isinstance(values, Mapping):
            return cls()
        try:
            return cls(**{kind: FrameSampling(**how) for kind, how in values.items()})
        except TypeError:
            raise UserError(
                "its sampling of images has unknown values; correct them or leave them out"
            ) from None

    def over(self, default: "VisionSampling") -> "VisionSampling":
        """Returns these values, those of `default` in place of None."""
        return VisionSampling(
            image=self.image.over(default.image), video=self.video.over(default.video)
        )

    def unguided(self) -> "VisionSampling":
        """Returns these without guidance where guidance is None."""
        none = FrameSampling(guidance=1.0)
        return self.over(VisionSampling(image=none, video=none))

    @property
    def is_guided(self) -> bool:
        """True if guidance needs rows without the prompt."""
        return any(each.guidance not in (None, 1) for each in (self.image, self.video))


LWM_SAMPLING = VisionSampling(
    image=FrameSampling(guidance=5.0, temperature=1.0, top_k=8192, top_p=1.0),
    video=FrameSampling(guidance=1.0, temperature=1.0, top_k=1000, top_p=1.0),
)
"""Values of LWM's scripts."""
