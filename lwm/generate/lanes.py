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
