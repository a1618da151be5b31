"""Log-probabilities of given ids, of many prompts together on a model's engine."""

import dataclasses
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lwm.generate.answer import Answer
from lwm.generate.loaded import LoadedModel
from lwm.sampling_params import SamplingParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Ids, and the first of them to be scored."""

    ids: Sequence[int]
    first: int
    """At least 1, since the first id of all has none before it."""
    tag: Any = None
    """Identifies the request."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of the ids of a request from its `first` on."""

    request: ScoreRequest
    logprobs: Sequence[float]
    """Natural logarithm of each id's probability after those before it."""
    is_likeliest: Sequence[bool]
    """True where no other id of the same modality has a higher probability."""


def score(
    model: LoadedModel,
    requests: Iterable[ScoreRequest],
    *,
    rows: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Scored]:
    """Yields the scores of each request once they are ready, in any order.

    They are the same to the last bit whatever the other requests are. What comes before the
    first id that is scored is shared with earlier requests, in chunks.

    Args:
        model: The model.
        requests: Taken only when they can be worked on.
        rows: Requests that are worked on together.
        progress: Called with the tokens read of the requests that are not ready yet; may raise.

    Raises:
        UserError: A request does not fit into the context, or the devices' memory.
    """
    inbox: queue.SimpleQueue[tuple[Answer, Any]] = queue.SimpleQueue()
    running: dict[Answer, ScoreRequest] = {}
    read: dict[int, int] = {}
    lane, waiting = model.lane(rows), iter(requests)
    try:
        while True:
            while len(running) < lane and (request := next(waiting, None)):
                running[_send(model, request, lane, read, inbox)] = request
            if not running:
                return
            answer, event = inbox.get()
            answer.take(event)
            if answer.finish_reason is None:
                progress(sum(read.values()))
                continue
            request = running.pop(answer)
            read.pop(id(request), None)
            yield Scored(
                request=request,
                logprobs=answer.prompt_logprobs,
                is_likeliest=answer.prompt_is_likeliest,
            )
    finally:
        for answer in running:
            answer.close()


def _send(
    model: LoadedModel,
    request: ScoreRequest,
    lane: int,
    read: dict[int, int],
    inbox: "queue.SimpleQueue[tuple[Answer, Any]]",
) -> Answer:
    return Answer(
        model,
        request.ids,
        SamplingParams(max_tokens=0),
        lane=lane,
        progress=lambda done, total: read.__setitem__(id(request), done),
        scores_from=request.first,
        inbox=inbox,
    )
