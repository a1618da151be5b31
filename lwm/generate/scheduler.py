"""Plans the steps of the engine: rows to admit, chunks to read, lanes to continue. No arrays."""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

from lwm.generate.lanes import Lane, Turns, WorkTurns
from lwm.generate.pages import LONG, Names, Need, Pages, chunk_at
from lwm.generate.requests import Request, Row
from lwm.model.pool import PAGE

PATIENCE = 32
"""Requests of other lanes that may pass a request that waits for pages."""


class Copy(NamedTuple):
    """A page to copy, on one device of a group."""

    group: int
    device: int
    source: int
    destination: int


class Read(NamedTuple):
    """A chunk of a prompt to read."""

    row: Row
    start: int
    size: int
    """`LONG` or `SHORT`."""
    count: int
    """Ids of the prompt in it; padding follows on the right."""


class Step(NamedTuple):
    """Work of the engine: copies, then a read per group, and a burst of each lane."""

    ended: tuple[Request, ...]
    """Cancelled, and dropped from their line or their slots; their rows must write no more."""
    admitted: tuple[Row, ...]
    """Have been given a slot, perhaps one of a row that has just ended."""
    copies: tuple[Copy, ...]
    """No page is both copied and written."""
    started: tuple[Request, ...]
    """All their prompts have been read, or copied by this step: their pages are final."""
    reads: tuple[Read, ...]
    """At most one per group."""
    lanes: tuple[int, ...]
    """Widths of the lanes in which rows decode."""
    short: tuple[Request, ...]
    """First in their lines, with free slots, but not with enough pages."""
    wants: int
    """Pages that each device lacks for all of these; 0 if there are none."""


class _Group:
    """Devices that hold all pages of their rows."""

    def __init__(self, per_device: int, sp: int):
        self.pages = Pages(per_device, sp=sp)
        self.rows: list[Row] = []


class Scheduler:
    """Requests in line and rows in slots.

    The engine calls `plan`, launches the step, and calls `has_read` for each of its reads; it
    calls `finish` for requests whose rows have written all that they should.
    """

    def __init__(self, per_device: int, *, root: bytes = b"", groups: int = 1, sp: int = 1):
        """Starts without a request.

        Args:
            per_device: Pages of each device, page 0 included, which takes dummy writes.
            root: All but the ids that decides the bits of a page.
            groups: Groups of devices, each of which holds all pages of its rows.
            sp: Devices of a group.
        """
        self._root = root
        self._sp = sp
        self._groups = [_Group(per_device, sp) for _ in range(groups)]
        self._lanes: dict[int, Lane] = {}
        self._running: dict[Request, bool] = {}  # with slots; True once it has started
        self._clients: dict[Hashable, int] = {}  # requests of each
        self._admissions = Turns()
        self._clients_read, self._rows_read = WorkTurns(), WorkTurns()

    @property
    def is_idle(self) -> bool:
        """True if no request waits or runs."""
        return not self._clients

    @property
    def pages(self) -> list[Pages]:
        """The accounting of each group."""
        return [group.pages for group in self._groups]

    @property
    def running(self) -> list[Request]:
        """Requests that have slots, in the order of their admission."""
        return list(self._running)

    def add(self, request: Request) -> None:
        """Puts a request in line; its lane is made at its first use.

        Raises:
            ValueError: It has been added before, or its rows do not fit a group's share of its
                lane.
        """
        groups, width = len(self._groups), request.lane
        if width % groups or len(request.prompts) > width // groups:
            raise ValueError(
                f"{len(request.prompts)} rows do not fit one of {groups} groups of {width} slots"
            )
        if request.rows:
            raise ValueError("a request is added once")
        names = [Names.of(prompt[:-1], self._root, request.salt) for prompt in request.prompts]
        request.rows = tuple(Row(request, number, each) for number, each in enumerate(names))
        self._lanes.setdefault(width, Lane(width, groups, self._admissions)).push(request)
        self._clients[request.client] = self._clients.get(request.client, 0) + 1

    def plan(self) -> Step:
        """Drops cancelled requests, admits others, and returns what to do next."""
        ended = self._drop_cancelled()
        self._bind()  # first, since it frees pages
        admitted, short, wants = self._admit()
        copies = [copy for group in self._groups for copy in self._copy_tails(group)]
        started = [
            request
            for request, has_started in self._running.items()
            if request.is_ready and not has_started
        ]
        self._running.update(dict.fromkeys(started, True))
        return Step(
            ended=tuple(ended),
            admitted=tuple(admitted),
            copies=tuple(copies),
            started=tuple(started),
            reads=tuple(read for group in self._groups for read in self._next_read(group)),
            lanes=tuple(sorted({each.lane for each, started in self._running.items() if started})),
            short=tuple(short),
            wants=wants,
        )

    def has_read(self, read: Read) -> None:
        """Notes that a chunk has been launched; a complete one may be shared from now on."""
        row = read.row
        if row.request not in self._running:
            return
        row.length = read.start + read.count
        row.num_read += read.count
        if read.count == LONG:
            number = read.start // LONG
            pages = self._groups[row.group].pages
            pages.name(row.holding, number, row.names.chunks[number])

    def finish(self, request: Request) -> None:
        """Frees the slots and pages of a request, if it has not been dropped before."""
        if request not in self._running:
            return
        del self._running[request]
        slots = self._lanes[request.lane].slots
        for row in request.rows:
            group = self._groups[row.group]
            group.pages.release(row.holding)
            group.rows.remove(row)
            slots[row.slot] = None
            self._rows_read.forget(row)
        self._leave(request)

    def enlarge(self, per_device: int) -> None:
        """Adds pages to every device."""
        for pages in self.pages:
            pages.enlarge(per_device)

    def check(self) -> None:
        """Compares slots, lines and pages with the requests.

        Raises:
            AssertionError: They differ.
        """
        for pages in self.pages:
            pages.check()
        rows = [row for request in self._running for row in request.rows]
        for index, group in enumerate(self._groups):
            assert group.rows == [row for row in group.rows if row.group == index]
            group.pages.check_holders({row.holding for row in group.rows})
        assert {row for group in self._groups for row in group.rows} == set(rows)
        seated = [row for lane in self._lanes.values() for row in lane.slots if row is not None]
        assert len(seated) == len(rows)
        assert set(seated) == set(rows)
        for row in rows:
            lane = self._lanes[row.request.lane]
            assert lane.slots[row.slot] is row
            assert row.slot * len(self._groups) // row.request.lane == row.group
        waiting = [request for lane in self._lanes.values() for request in lane.waiting]
        assert sum(self._clients.values()) == len(waiting) + len(self._running)

    def _drop_cancelled(self) -> list[Request]:
        ended = [request for request in self._running if request.is_cancelled]
        for request in ended:
            self.finish(request)
        for lane in self._lanes.values():
            dropped = lane.drop_cancelled()
            for request in dropped:
                self._leave(request)
            ended += dropped
        return ended

    def _leave(self, request: Request) -> None:
        client = request.client
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]
            self._admissions.forget(client)
            self._clients_read.forget(client)

    def _admit(self) -> tuple[list[Row], list[Request], int]:
        """Admits the first in each line until one does not fit; returns those that lack pages."""
        admitted, short, wants = [], [], 0
        blocked: set[int] = set()
        while True:
            heads = [
                lane.place(head)
                for width, lane in self._lanes.items()
                if width not in blocked and (head := lane.head()) is not None
            ]
            if not heads:
                return admitted, short, wants
            *_, request = min(heads)
            group, lacks = self._find_room(request)
            if group is None:
                blocked.add(request.lane)
                if lacks and not self._will_share(request):
                    short.append(request)
                    wants = max(wants, lacks)
                    if request.passed >= PATIENCE:
                        return admitted, short, wants
                continue
            self._lanes[request.lane].pop()
            admitted += self._seat(request, group)
            for other in short:
                other.passed += 1

    def _find_room(self, request: Request) -> tuple[_Group | None, int]:
        """Returns a group with slots and pages, or None and the pages it lacks that has slots.

        The group with the longest kept prefix comes first, then the one with the fewest rows.
        """
        lane, needs = self._lanes[request.lane], self._needs(request)
        with_slots = [
            group
            for index, group in enumerate(self._groups)
            if len(lane.free(index)) >= len(request.rows)
        ]
        short = [group.pages.shortage(needs) for group in with_slots]
        room = [group for group, pages in zip(with_slots, short, strict=True) if not pages]

        def fitness(group: _Group) -> tuple[int, int]:
            return sum(len(group.pages.match(need)) for need in needs), -len(group.rows)

        return max(room, key=fitness, default=None), min(short, default=0)

    def _will_share(self, request: Request) -> bool:
        """Returns whether a row is reading a chunk that the request could share, once it is read.

        It then waits for that, and asks for no more pages than it lacks in the end.
        """
        for group in self._groups:
            coming = {name for row in group.rows for name in row.names.chunks[row.length // LONG :]}
            for need in self._needs(request):
                known = len(group.pages.match(need))
                if need.names[known : known + 1] and need.names[known] in coming:
                    return True
        return False

    def _needs(self, request: Request) -> list[Need]:
        return [
            Need(
                row.shareable,
                request.num_held(row.prompt),
                row.names.offset(self._sp),
            )
            for row in request.rows
        ]

    def _seat(self, request: Request, group: _Group) -> tuple[Row, ...]:
        lane, index = self._lanes[request.lane], self._groups.index(group)
        holdings = group.pages.admit(self._needs(request))
        assert holdings is not None
        for row, holding, slot in zip(request.rows, holdings, lane.free(index), strict=False):
            row.holding, row.group, row.slot = holding, index, slot
            row.length = row.num_shared = holding.num_shared
            self._rows_read.arrive(row)
            lane.slots[slot] = row
            group.rows.append(row)
        self._running[request] = False
        self._admissions.take(request.client)
        self._clients_read.arrive(request.client)
        return request.rows

    def _bind(self) -> None:
        """Gives rows the chunks due next that other rows have read by now."""
        for group in self._groups:
            for row in group.rows:
                names = row.shareable
                while (number := row.length // LONG) < len(names):
                    if not group.pages.bind(row.holding, number, names[number]):
                        break
                    row.length += LONG
                    row.num_shared += LONG

    def _copy_tails(self, group: _Group) -> list[Copy]:
        """Gives rows copies of the tails due next that other rows have read by now."""
        # All sources are found first: no page is both copied and written.
        pairs = [(row, self._tail_of(group, row)) for row in group.rows]
        copies = []
        for row, source in pairs:
            if source is None or not source.is_ready:
                continue
            for block in range(row.length // PAGE, -(-row.num_to_read // PAGE)):
                device = (block + row.holding.offset) % self._sp
                pages = source.holding.pages[block], row.holding.pages[block]
                copies.append(Copy(row.group, device, *pages))
            row.num_shared += row.num_to_read - row.length
            row.length = row.num_to_read
        return copies

    def _tail_of(self, group: _Group, row: Row) -> Row | None:
        """Returns a row that reads or has read the tail that `row` is about to read."""
        start = len(row.names.chunks) * LONG
        if row.length != start or row.is_ready or row.request.reuse is not None:
            return None
        same = [
            other
            for other in group.rows
            if other is not row and other.names.whole == row.names.whole and other.length > start
        ]
        return max(same, key=lambda other: other.is_ready, default=None)

    def _next_read(self, group: _Group) -> Iterator[Read]:
        """Yields the chunk of the row whose turn it is, if any row reads."""
        rows = [row for row in group.rows if not row.is_ready]
        if not rows:
            return

        def place(row: Row) -> tuple[tuple[int, int], ...]:
            size, _ = chunk_at(row.length, row.num_to_read)
            client = self._clients_read.place(row.request.client, size)
            return (-row.request.priority, 0), client, self._rows_read.place(row, size)

        row = min(rows, key=place)
        size, _ = chunk_at(row.length, row.num_to_read)
        self._clients_read.take(row.request.client, size)
        self._rows_read.take(row, size)
        # A row that waits for another one's tail lends it its turn.
        reader = self._tail_of(group, row) or row
        size, count = chunk_at(reader.length, reader.num_to_read)
        yield Read(reader, reader.length, size, count)
