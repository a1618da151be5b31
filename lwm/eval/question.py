"""A question of an evaluation, the answer to it, and a program or model that answers."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

PromptForm = Literal["chat", "lwm", "text"]
"""The model's chat template, exactly LWM's prompt, or the message alone, for base models."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, and the room for its answer."""

    cell: Any
    """The cell of the evaluation that it belongs to."""
    message: str
    """The user's message, or the text to continue."""
    opening: str = ""
    """Start of the answer, given to the model as part of the prompt."""
    form: PromptForm = "chat"
    """Form of the prompt around the message, for servers, which encode it themselves."""
    ids: Sequence[int]
    """The prompt as the tokenizer has it, chat template included."""
    overhead: int = 0
    """Tokens of `ids` that are of the template, and not of the message; servers have their own."""
    max_tokens: int
    """Tokens of the answer, at most."""
    truth: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Parts of a right answer, and other facts of the prompt, for `Evaluation.row`."""

    @property
    def built_length(self) -> int:
        """Tokens of the prompt and of the room for its answer."""
        return len(self.ids) + self.max_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """Text that follows a prompt."""

    text: str
    prompt_tokens: int
    """Tokens of the prompt by the count of the model or its server."""
    completion_tokens: int


@runtime_checkable
class Answerer(Protocol):
    """A model, an endpoint or a program that answers questions."""

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Response]]:
        """Yields each question with its response once it is ready, in any order.

        Takes the next question only when it can be worked on, since prompts are large.
        """
        ...
