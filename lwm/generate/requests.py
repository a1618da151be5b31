"""Requests to the engine, and the rows that work on them."""

import itertools
import queue
from array import array
from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

from lwm.generate.pages import LONG, Holding, Names

_arrivals = itertools.count()


class Request:
    """Prompts to read and continue together, and the events that come of it.

    Several rows of one request (a guided pair, the first row leads) live in one group of devices,
    start together and end together.
    """

    def __init__(
        self,
        *prompts: Sequence[int],
        max_tokens: int,
        lane: int = 1,
        priority: int = 0,
        client: Hashable = None,
        reuse: int | None = None,
        salt: bytes = b"",
        work: Any = None,
    ):
        """Asks for an answer.

        Args:
            *prompts: Ids of each row.
            max_tokens: Ids that each row writes at most.
            lane: The number of slots of the batch that the rows run in.
            priority: Higher ones come first.
            client: Clients take turns; None is one of its own.
            reuse: Ids at the front of each prompt that are shared at most, if other rows have
                read them; None: all of them.
            salt: What is read of the prompts is shared only between requests with the same.
            work: All that the scheduler never looks at.

        Raises:
            ValueError: There is no prompt, or an empty one.
        """
        if not prompts or not all(prompts):
            raise ValueError("a request has at least one prompt, and a prompt at least one id")
        # Four bytes an id, while a list of a million ids takes forty megabytes.
        self.prompts = tuple(
            prompt if isinstance(prompt, array) else array("i", prompt) for prompt in prompts
        )
        self.max_tokens = max_tokens
        self.lane = lane
        self.priority = priority
        self.arrival = next(_arrivals)
        self.client: Hashable = ("request", self.arrival) if client is None else client
        self.reuse = reuse
        self.salt = salt
        self.work = work
        self.is_cancelled = False
        """Set by any thread; the scheduler drops the request when it plans next."""
        self.events: Inbox = queue.SimpleQueue()
        self.passed = 0
        """Requests after it in order that were admitted while it lacked pages."""
        self.rows: tuple[Row, ...] = ()
        """One for each prompt, once it has been added to a scheduler."""

    def num_held(self, prompt: Sequence[int]) -> int:
        """Returns the ids of a row that are in its pages at most; without an answer, not the last.

        So a prompt to be scored may have one id more than the context.
        """
        return len(prompt) + self.max_tokens - (self.max_tokens == 0 and len(prompt) > 1)

    @property
    def is_ready(self) -> bool:
        """True if all prompts have been read."""
        return all(row.is_ready for row in self.rows)

    @property
    def num_read(self) -> int:
        """Ids of the prompts that have been read for this request."""
        return sum(row.num_read for row in self.rows)

    @property
    def num_shared(self) -> int:
        """Ids of the prompts that another row had read."""
        return sum(row.num_shared for row in self.rows)


@runtime_checkable
class Inbox(Protocol):
    """A queue of events, or all that takes them as one does."""

    def put(self, event: Any, /) -> None:
        """Adds an event; called on the engine's thread, so that it must not wait."""
        ...


class Tagged:
    """Events of a request in a queue that it shares with others, each with a tag."""

    def __init__(self, inbox: Inbox, tag: Any):
        """Takes the queue and the tag."""
        self._inbox, self._tag = inbox, tag

    def put(self, event: Any) -> None:
        """Adds an event."""
        self._inbox.put((self._tag, event))


class Row:
    """One prompt of a request in a slot of its lane.

    Its last id is not read: decoding starts from it.
    """

    def __init__(self, request: Request, number: int, names: Names):
        """Starts outside any slot."""
        self.request = request
        self.number = number
        """0 for the row that leads, 1 for the one that follows it."""
        self.prompt = request.prompts[number]
        self.names = names
        """Of the ids that are read."""
        self.group = -1
        self.slot = -1
        self.holding = Holding()
        """Its pages. Some are replaced by shared ones until all has been read."""
        self.length = 0
        """Ids in its pages. The scheduler counts them until all has been read."""
        self.num_read = 0
        self.num_shared = 0

    @property
    def shareable(self) -> tuple[bytes, ...]:
        """Names of the chunks at its front that may be another row's."""
        most = self.request.reuse
        return self.names.chunks if most is None else self.names.chunks[: most // LONG]

    @property
    def num_to_read(self) -> int:
        """Ids that are read before decoding starts."""
        return len(self.prompt) - 1

    @property
    def is_ready(self) -> bool:
        """True if all of the prompt but its last id is in its pages."""
        return self.length >= self.num_to_read and self.slot >= 0
