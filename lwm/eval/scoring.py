"""Log-probabilities of given ids, and answers, of many prompts together on a model's engine."""

import dataclasses
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from lwm.generate.answer import Answer
from lwm.generate.loaded import LoadedModel
from lwm.generate.output import Frame
from lwm.progress import Progress
from lwm.sampling_params import SamplingParams

T = TypeVar("T")
Inbox = queue.SimpleQueue[tuple[Answer, Any]]


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
    lane = model.lane(rows)

    def send(request: ScoreRequest, inbox: Inbox, note: Progress) -> Answer:
        return Answer(
            model,
            request.ids,
            SamplingParams(max_tokens=0),
            lane=lane,
            progress=note,
            scores_from=request.first,
            inbox=inbox,
        )

    for request, answer, _ in together(requests, send, lane, progress=progress):
        yield Scored(
            request=request,
            logprobs=answer.prompt_logprobs,
            is_likeliest=answer.prompt_is_likeliest,
        )


def together(
    requests: Iterable[T],
    send: Callable[[T, Inbox, Progress], Answer],
    count: int,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[T, Answer, list[str | Frame]]]:
    """Yields each request with its answer and all its pieces once it has ended, in any order.

    Args:
        requests: Taken only when they can be worked on.
        send: Sends a request to the engine, with its inbox and progress.
        count: Requests that are worked on together.
        progress: Called with the tokens read of the prompts of answers that have not ended; may
            raise, which ends all answers.
    """
    inbox: Inbox = queue.SimpleQueue()
    running: dict[Answer, _Running] = {}
    waiting = iter(requests)
    try:
        while True:
            while len(running) < count and (request := next(waiting, None)) is not None:
                begun = _Running(request)
                running[send(request, inbox, begun.note)] = begun
            if not running:
                return
            answer, event = inbox.get()
            begun = running[answer]
            begun.pieces += answer.take(event)
            if answer.finish_reason is None:
                progress(sum(each.read for each in running.values()))
            else:
                del running[answer]
                yield begun.request, answer, begun.pieces
    finally:
        for answer in running:
            answer.close()


def text_of(pieces: Iterable[str | Frame]) -> str:
    """Returns the text in the pieces of an answer."""
    return "".join(piece for piece in pieces if isinstance(piece, str))


@dataclasses.dataclass
class _Running:
    """A request that is being worked on."""

    request: Any
    pieces: list[str | Frame] = dataclasses.field(default_factory=list)
    read: int = 0

    def note(self, done: int, total: int) -> None:
        """Notes the tokens of the prompt that have been read."""
        self.read = done
