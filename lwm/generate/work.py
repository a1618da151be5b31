"""Work of the engine for a request, and the events that come of it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from lwm.generate.plan import GenerationPlan
from lwm.generate.requests import Request

FinishReason = Literal["stop", "length"]
"""`stop`: a stop id or string, or the last frame asked for; `length`: `max_tokens` were written."""


class Reading(NamedTuple):
    """Progress of a prompt."""

    done: int
    """Ids of the prompt that are in its pages, those shared with others included."""
    total: int


class Written(NamedTuple):
    """Ids written to a row, with their log-probabilities; see `lwm.generate.decoding.Burst`."""

    ids: list[int]
    logprobs: list[float]
    tops: Sequence[list[tuple[int, float]]] = ()
    """The likeliest ids in place of each, if the plan asks for them."""


class Scores(NamedTuple):
    """Log-probabilities of the ids of a prompt from `start` on, each after those before it."""

    start: int
    logprobs: list[float]
    is_likeliest: list[bool]
    """True where no other id of the same modality has a higher probability."""
    tops: Sequence[list[tuple[int, float]]] = ()
    """The likeliest ids in place of each, if the plan asks for them."""


class Finished(NamedTuple):
    """End of an answer."""

    reason: FinishReason
    num_cached: int
    """Ids of the prompt that did not have to be read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Work of the engine for a request, as its `work`."""

    plan: GenerationPlan
    read: Callable[[Written], tuple[Any, bool]] = lambda written: (written, False)
    """Turns what has been written into an event, and decides whether the answer ends with it.

    Runs on the engine's thread: a stop string ends its row at once.
    """
    scores_from: int | None = None
    """Sends `Scores` of the prompt's ids from this index on, at least 1; None: of none.

    All that they come from is read; chunks before it may be shared.
    """

    def request(self, *prompts: Sequence[int], **options: Any) -> Request:
        """Returns a request for this work; of two prompts, the second is the row without condition.

        Args:
            *prompts: Ids of each row.
            **options: Lane, priority, client and salt; see `Request`.
        """
        return Request(
            *prompts,
            max_tokens=self.plan.max_tokens,
            reuse=None if self.scores_from is None else self.scores_from - 1,
            work=self,
            **options,
        )
