"""Turns of clients, and batches of a fixed number of slots with the requests in line for them."""

import heapq
import itertools
from collections.abc import Hashable

from lwm.generate.requests import Request, Row


class Turns:
    """Clients in the order of their last turns; a new one is the last.

    So each waits for one turn of each other one at most, however many come, and however much one
    asks for.
    """

    def __init__(self):
        """Starts without a client."""
        self._last: dict[Hashable, int] = {}
        self._clock = itertools.count()

    def last(self, client: Hashable) -> int:
        """Returns the time of a client's last turn, or of its arrival; the least is next."""
        if client not in self._last:
            self.take(client)
        return self._last[client]

    def take(self, client: Hashable) -> None:
        """Notes that a client has its turn."""
        self._last[client] = next(self._clock)

    def forget(self, client: Hashable) -> None:
        """Forgets a client without requests."""
        self._last.pop(client, None)


class WorkTurns:
    """Turns by the work that each has had, by self-clocked fair queueing (Golestani 1994).

    The next is the one whose next piece of work would end first if all worked at the same speed; of
    several, one without a turn, then the one whose last turn is longest ago. One that arrives
    starts level with the last turn: it waits for the piece of work in progress, and nobody waits
    for more than as much work of each other one.
    """

    def __init__(self):
        """Starts without anyone."""
        self._now = 0
        self._ends: dict[Hashable, int] = {}
        self._last: dict[Hashable, int] = {}
        self._clock = itertools.count()

    @property
    def is_empty(self) -> bool:
        """True if nobody has work."""
        return not self._ends

    def arrive(self, one: Hashable) -> None:
        """Notes one that has work from now on."""
        self._ends[one] = max(self._now, self._ends.get(one, 0))

    def place(self, one: Hashable, work: int) -> tuple[int, int]:
        """Returns the place of one with a piece of work; the least is next."""
        return self._ends[one] + work, self._last.get(one, -1)

    def take(self, one: Hashable, work: int) -> None:
        """Notes that one has its turn."""
        self._now = self._ends[one] = self._ends[one] + work
        self._last[one] = next(self._clock)

    def forget(self, one: Hashable) -> None:
        """Forgets one that has no more work."""
        self._ends.pop(one, None)
        self._last.pop(one, None)


class Lane:
    """Slots of a batch, an equal share for each group of devices, and a line for them."""

    def __init__(self, width: int, groups: int, turns: Turns):
        """Starts with free slots; `turns` decides who is first in line."""
        self.slots: list[Row | None] = [None] * width
        self._share = width // groups
        self._turns = turns
        # A heap by priority, the client's last turn when last looked at, and arrival.
        self._line: list[tuple[int, int, int, Request]] = []

    def free(self, group: int) -> list[int]:
        """Returns the free slots of a group."""
        own = range(group * self._share, (group + 1) * self._share)
        return [slot for slot in own if self.slots[slot] is None]

    @property
    def waiting(self) -> list[Request]:
        """Requests in line, in no order."""
        return [request for *_, request in self._line]

    def place(self, request: Request) -> tuple[int, int, int, Request]:
        """Returns the place in line, the least being the first."""
        return -request.priority, self._turns.last(request.client), request.arrival, request

    def push(self, request: Request) -> None:
        """Puts a request in line."""
        heapq.heappush(self._line, self.place(request))

    def head(self) -> Request | None:
        """Returns the first in line."""
        while self._line:
            request = self._line[0][-1]
            place = self.place(request)
            if place == self._line[0]:
                return request
            heapq.heapreplace(self._line, place)  # its client has had a turn meanwhile
        return None

    def pop(self) -> None:
        """Takes the first out of the line."""
        heapq.heappop(self._line)

    def drop_cancelled(self) -> list[Request]:
        """Takes cancelled requests out of the line and returns them, in the order of arrival."""
        # Another thread may set the flag at any time: look at it once.
        dropped = {request for request in self.waiting if request.is_cancelled}
        if dropped:
            self._line = [place for place in self._line if place[-1] not in dropped]
            heapq.heapify(self._line)
        return sorted(dropped, key=lambda request: request.arrival)
