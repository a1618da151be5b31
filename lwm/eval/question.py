"""A question of an evaluation, the answer to it, and a program or model that answers."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from lwm.eval.form import PromptForm
from lwm.sampling_params import FrameSampling, VisionSampling
from lwm.tokenizer.message import Part, Vision

GREEDY = FrameSampling(guidance=1.0, temperature=0.0)
"""The likeliest codes, without guidance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, and the room for its answer."""

    cell: Any
    """The cell of the evaluation that it belongs to."""
    message: str
    """The user's message, or the text to continue; of a message with images, its text."""
    parts: Sequence[Part] = ()
    """Texts, images and videos of a message that is not text alone, in order."""
    opening: str = ""
    """Start of the answer, given to the model as part of the prompt."""
    form: PromptForm = "chat"
    """Form of the prompt around the message, for servers, which encode it themselves."""
    ids: Sequence[int]
    """The prompt as the tokenizer has it, chat template included."""
    overhead: int = 0
    """Tokens of `ids` that are of the template, and not of the message; servers have their own."""
    max_tokens: int
    """Tokens of the answer, at most; of frames exactly."""
    frames: int = 0
    """Frames of the image or video that is asked for, which the prompt has begun; 0: text."""
    sampling: VisionSampling = VisionSampling(image=GREEDY, video=GREEDY)
    """Sampling of these frames."""
    seed: int = 0
    """Seed of these frames, if they are sampled."""
    truth: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Parts of a right answer, and other facts of the prompt, for `Evaluation.row`."""

    @property
    def built_length(self) -> int:
        """Tokens of the prompt and of the room for its answer."""
        return len(self.ids) + self.max_tokens

    @property
    def visions(self) -> list[Vision]:
        """Images and videos of the message."""
        return [part for part in self.parts if isinstance(part, Vision)]

    @property
    def is_text(self) -> bool:
        """True if there are images or videos neither in the message nor in its answer."""
        return not (self.visions or self.frames)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """Text, or an image or a video, that follows a prompt."""

    text: str
    prompt_tokens: int
    """Tokens of the prompt by the count of the model or its server."""
    completion_tokens: int
    codes: Int[np.ndarray, "frames codes"] | None = dataclasses.field(default=None, compare=False)
    """Codes of the frames that were asked for."""


@runtime_checkable
class Answerer(Protocol):
    """A model, an endpoint or a program that answers questions."""

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Response]]:
        """Yields each question with its response once it is ready, in any order.

        Takes the next question only when it can be worked on, since prompts are large.
        """
        ...
