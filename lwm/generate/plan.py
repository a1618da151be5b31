"""Plans of generation: what the engine writes after a prompt."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from lwm.generate.sampling import GREEDY, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionPlan:
    """Images and videos that a row writes, beside text."""

    state: Any
    """The state of the row in the engine's grammar, before the first id; a batch of one."""
    image: Sampler | None = None
    """Chooses codes of the first frame of an image or video; None: as for text."""
    video: Sampler | None = None
    """Chooses codes of the frames after it; None: as for the first."""
    guidance: float = 1.0
    """Classifier-free guidance scale of the first frame; 1 changes nothing.

    Used if the request has a second prompt, which is the row without the condition.
    """
    video_guidance: float | None = None
    """The scale of the frames after it; None: as for the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """Ids to write after a prompt."""

    max_tokens: int
    """Ids to write at most."""
    stop_ids: Collection[int] = ()
    """Ids that end the row; the one that does is written."""
    sampler: Sampler = GREEDY
    """Chooses text ids."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of text ids that the row has written."""
    frequency_penalty: float = 0.0
    """Likewise, as many times as the row has written them."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Added to the logits of text ids; at most `BIASES` of them."""
    min_tokens: int = 0
    """Ids before which no stop id is written."""
    top_logprobs: int = 0
    """Likeliest ids whose log-probabilities come with each id, at most `TOPS`."""
    seed: int = 0
    """From 0 to 2³² - 1; what a row samples depends on its seed and not on other rows."""
    vision: VisionPlan | None = None
    """None: text only."""
