import random
from typing import Any

import pytest

from lwm.generate.pages import LONG, SHORT
from lwm.generate.requests import Request, Row
from lwm.generate.scheduler import PATIENCE, Scheduler, Step
from lwm.model.pool import PAGE

RNG = random.Random(0)
DOCUMENT = tuple(RNG.randrange(1000) for _ in range(60 * LONG))


class Machine:
    """Runs the steps of a scheduler on pages that hold hashes instead of keys and values."""

    def __init__(self, per_device: int, *, groups: int = 1, sp: int = 1):
        self.scheduler = Scheduler(per_device, groups=groups, sp=sp)
        # For each 64 tokens: the hash of the prompt up to their end, and the row that decoded them.
        self.read: dict[tuple, Any] = {}
        self.written: dict[tuple, Any] = {}
        self.values: dict[Row, list[int]] = {}
        self.count: dict[Request, int] = {}
        """Ids written by each request that has started and not finished."""
        self.finished: list[Request] = []
        self.num_steps = 0
        self.num_reads = 0
        self.num_copies = 0

    def add(self, *prompts: tuple[int, ...], max_tokens: int = 8, **options) -> Request:
        request = Request(*prompts, max_tokens=max_tokens, **options)
        self.scheduler.add(request)
        return request

    def step(self) -> Step:
        step = self.scheduler.plan()
        self.num_steps += 1
        if self.num_steps % 8 == 0:
            self.scheduler.check()
        for request in step.ended:
            self.count.pop(request, None)
        self._copy(step)
        for request in step.started:
            self.verify(request)
            self.count[request] = 0
        assert len({read.row.group for read in step.reads}) == len(step.reads)
        for read in step.reads:
            for token in range(read.start, read.start + read.size, SHORT):
                self.read[self._place(read.row, token)] = self.value(
                    read.row, token, read.start + read.count
                )
            self.num_reads += 1
            self.scheduler.has_read(read)
        assert set(step.lanes) == {request.lane for request in self.count}
        for request in list(self.count):
            self._write(request)
        return step

    def run(self, steps: int = 5000) -> list[Step]:
        """Takes steps until nothing is left to do."""
        taken = []
        while not self.scheduler.is_idle:
            taken.append(self.step())
            assert len(taken) < steps
        self.scheduler.check()
        return taken

    def verify(self, request: Request) -> None:
        """Compares the pages of a request with its prompts and with the ids that it wrote."""
        for row in request.rows:
            assert len(row.holding.pages) == -(-(len(row.prompt) + request.max_tokens) // PAGE)
            for start in range(0, row.num_to_read, SHORT):
                end = min(start + SHORT, row.num_to_read)
                assert self.read[self._place(row, start)] == self.value(row, start, end)
            for token in range(0, self.count.get(request, 0), 8):
                assert self.written[self._place(row, row.num_to_read + token)] is row

    def value(self, row: Row, start: int, end: int) -> int:
        """Returns the hash of a prompt up to `end`, at most 64 ids after `start`."""
        values = self.values.setdefault(row, [0])
        while len(values) <= start // SHORT:
            before = len(values) * SHORT
            values.append(hash((values[-1], *row.prompt[before - SHORT : before])))
        return hash((values[start // SHORT], *row.prompt[start : min(end, start + SHORT)]))

    def _copy(self, step: Step) -> None:
        copied = [(c.group, c.device, c.source) for c in step.copies]
        written = [(c.group, c.device, c.destination) for c in step.copies]
        assert len(set(written)) == len(written)
        assert not set(copied) & set(written)
        for source, destination in zip(copied, written, strict=True):
            for part in range(PAGE // SHORT):
                for memory in (self.read, self.written):
                    memory[*destination, part] = memory.get((*source, part))
        self.num_copies += len(step.copies)

    def _write(self, request: Request) -> None:
        burst = min(8, request.max_tokens - self.count[request])
        for row in request.rows:
            start = row.num_to_read + self.count[request]
            for token in {start, start + burst - 1}:
                self.written[self._place(row, token)] = row
        self.count[request] += burst
        if self.count[request] == request.max_tokens:
            self.verify(request)
            del self.count[request]
            self.scheduler.finish(request)
            self.finished.append(request)

    def _place(self, row: Row, token: int) -> tuple:
        block, rest = divmod(token, PAGE)
        device = (block + row.holding.offset) % self.scheduler.pages[0].sp
        return row.group, device, row.holding.pages[block], rest // SHORT


def reads(steps: list[Step]) -> list[tuple[Request, int, int, int]]:
    return [(r.row.request, r.start, r.size, r.count) for step in steps for r in step.reads]


def start_of(request: Request, steps: list[Step]) -> int:
    (number,) = [n for n, step in enumerate(steps) if request in step.started]
    return number


def test_a_prompt_is_read_in_chunks_without_its_last_id():
    machine = Machine(20)
    request = machine.add(DOCUMENT[:1100])
    steps = machine.run()
    expected = [(0, LONG, 512), (512, LONG, 512), (1024, SHORT, 64), (1088, SHORT, 11)]
    assert reads(steps) == [(request, *each) for each in expected]
    assert steps[0].admitted == request.rows
    assert [step.started for step in steps] == [()] * 4 + [(request,)]
    assert (request.num_read, request.num_shared) == (1099, 0)


def test_a_prompt_of_one_id_starts_at_once():
    machine = Machine(20)
    request = machine.add((5,), lane=2)
    step = machine.step()
    assert step.started == (request,)
    assert step.lanes == (2,)
    assert not step.reads
    assert machine.scheduler.is_idle


def test_rows_decode_while_others_read_one_chunk_per_step():
    machine = Machine(100)
    machine.add((5,), max_tokens=80, lane=2)
    machine.add(DOCUMENT[: 4 * LONG + 1], lane=4)
    steps = [machine.step() for _ in range(6)]
    assert [len(step.reads) for step in steps] == [1, 1, 1, 1, 0, 0]
    assert [step.lanes for step in steps] == [(2,)] * 4 + [(2, 4), (2,)]


@pytest.mark.parametrize("sp", [1, 4])
@pytest.mark.parametrize("length", [200, 512 + 300, 2 * LONG + 1, 2 * LONG + 60])
def test_the_same_prompt_many_times_is_read_once(length, sp):
    machine = Machine(100, sp=sp)
    first = machine.add(DOCUMENT[:length], lane=8)
    machine.run()
    alone, machine = machine.num_reads, Machine(100, sp=sp)
    requests = [machine.add(DOCUMENT[:length], lane=8) for _ in range(8)]
    machine.run()
    assert machine.num_reads == alone
    assert sum(request.num_read for request in requests) == first.num_read
    assert sum(request.num_shared for request in requests) == 7 * first.num_read
    tail = -(-((length - 1) % LONG) // PAGE)
    assert machine.num_copies == 7 * tail


def test_questions_on_one_document_read_it_once():
    machine = Machine(100)
    asked = [(*DOCUMENT[: 8 * LONG + 30], question, 7) for question in range(4)]
    requests = [machine.add(prompt, lane=4) for prompt in asked]
    machine.run()
    assert machine.num_reads == 8 + 4
    later = machine.add((*DOCUMENT[: 8 * LONG], 1, 2), lane=1)
    machine.run()
    assert machine.num_reads == 8 + 4 + 1
    assert (later.num_read, later.num_shared) == (1, 8 * LONG)
    assert sum(request.num_read for request in requests) == 8 * LONG + 4 * 31


def test_questions_on_one_document_need_its_pages_once():
    """The second question waits for the first to read the document: no larger pool is asked for."""
    document = DOCUMENT[: 8 * LONG]
    machine = Machine(1 + 2 * 8 + 3)
    requests = [machine.add((*document, question, 7), lane=4) for question in range(3)]
    steps = machine.run()
    assert [step.wants for step in steps] == [0] * len(steps)
    assert machine.num_reads == 8 + 3
    assert sorted(machine.finished, key=requests.index) == requests


def test_rows_that_share_late_free_pages_for_others():
    machine = Machine(2 * 9 + 1)
    machine.add(DOCUMENT[: 4 * LONG], max_tokens=PAGE, lane=8)
    second = machine.add((*DOCUMENT[: 3 * LONG], *DOCUMENT[:LONG]), max_tokens=PAGE, lane=8)
    third = machine.add(DOCUMENT[1 : LONG + 1], max_tokens=PAGE, lane=8)
    first_step = machine.step()
    assert (first_step.wants, third.rows[0].slot) == (3, -1)
    admitted = [row.request for _ in range(4) for row in machine.step().admitted]
    assert admitted == [third]
    machine.run()
    assert second.num_shared > 0
    # Three chunks in common, the two tails, and the first and last chunk of the third prompt.
    assert machine.num_reads == 3 + 2 + 1


def test_requests_that_may_not_share_read_all_and_leave_it_to_others():
    machine = Machine(100)
    prompt = DOCUMENT[: 2 * LONG + 50]
    machine.add(prompt, lane=4)
    whole = machine.add(prompt, lane=4, reuse=0)
    machine.run()
    assert (whole.num_read, whole.num_shared) == (len(prompt) - 1, 0)
    machine = Machine(100)
    machine.add(prompt, lane=4, reuse=0)
    machine.run()
    later = machine.add(prompt, lane=4)
    machine.run()
    assert later.num_shared == 2 * LONG
    part = machine.add(prompt, lane=4, reuse=2 * LONG - 1)
    machine.run()
    assert (part.num_read, part.num_shared) == (LONG + 49, LONG)


def test_a_pair_is_admitted_in_one_group_and_starts_together():
    machine = Machine(100, groups=2)
    alone = [machine.add(DOCUMENT[:100], max_tokens=64, lane=4) for _ in range(3)]
    pair = machine.add(DOCUMENT[1:1000], DOCUMENT[2:30], max_tokens=16, lane=4)
    after = machine.add((1,), lane=4)
    steps = machine.run()
    # One slot was free, which neither half of the pair nor the request after it has taken.
    assert [row.request for row in steps[0].admitted] == alone
    rows = [row for step in steps for row in step.admitted][3:]
    assert [row.request for row in rows] == [pair, pair, after]
    assert [row.number for row in rows] == [0, 1, 0]
    assert pair.rows[0].group == pair.rows[1].group
    assert {row.slot // 2 for row in pair.rows} == {pair.rows[0].group}
    last = max(n for n, step in enumerate(steps) if pair in [r.row.request for r in step.reads])
    assert start_of(pair, steps) == last + 1


def test_a_pair_shares_what_its_prompts_have_in_common():
    machine = Machine(100)
    context = DOCUMENT[: 3 * LONG]
    pair = machine.add((*context, 1, 2), (*context, 3, 4), lane=2)
    machine.run()
    assert (pair.num_read, pair.num_shared) == (3 * LONG + 2, 3 * LONG)


def test_a_request_is_admitted_only_with_all_the_pages_that_it_may_need():
    machine = Machine(9)
    first = machine.add((1, 2), max_tokens=5 * PAGE - 2, lane=4)
    second = machine.add((3, 4), max_tokens=4 * PAGE - 2, lane=4)
    bigger = machine.add((5, 6), max_tokens=6 * PAGE - 2, lane=2)
    smaller = machine.add((7, 8), max_tokens=5 * PAGE - 2, lane=1)
    step = machine.step()
    assert [row.request for row in step.admitted] == [first]
    assert step.wants == 3  # pages: 3 of 8 are free, and 4, 6 and 5 are asked for
    machine.scheduler.enlarge(10)
    step = machine.step()
    assert [row.request for row in step.admitted] == [second]
    assert step.wants == 6
    machine.scheduler.enlarge(16)
    step = machine.step()
    assert [row.request for row in step.admitted] == [bigger]
    assert step.wants == 5
    machine.scheduler.enlarge(21)
    step = machine.step()
    assert [row.request for row in step.admitted] == [smaller]
    assert step.wants == 0
    machine.run()


def test_the_first_in_line_is_not_overtaken_in_its_lane():
    machine = Machine(9)
    machine.add((1, 2), max_tokens=5 * PAGE - 2, lane=4)
    big = machine.add((3, 4), max_tokens=4 * PAGE - 2, lane=4)
    small = machine.add((5, 6), lane=4)
    other = machine.add((7, 8), lane=2)
    steps = machine.run()
    order = [row.request for step in steps for row in step.admitted]
    assert order[1:] == [other, big, small]


def test_other_lanes_do_not_starve_a_request_that_waits_for_pages():
    machine = Machine(9)
    machine.add((1, 2), max_tokens=4 * PAGE - 2, lane=4)
    big = machine.add((3, 4), max_tokens=8 * PAGE - 2, lane=4)
    others = [machine.add((5,), lane=2) for _ in range(PATIENCE + 4)]
    steps = [machine.step() for _ in range(40)]
    urgent = machine.add((5,), lane=1, priority=1)
    steps += machine.run()
    order = [row.request for step in steps for row in step.admitted]
    assert order[1 : PATIENCE + 3] == [*others[:PATIENCE], urgent, big]
    assert big.passed == PATIENCE


def test_priority_comes_first_in_line_and_in_reading():
    machine = Machine(300)
    low = machine.add(DOCUMENT[: 20 * LONG], lane=2, max_tokens=8)
    other = machine.add(DOCUMENT[1 : 20 * LONG], lane=2, max_tokens=8)
    late = machine.add(DOCUMENT[2 : 4 * LONG], lane=2)
    high = machine.add(DOCUMENT[3 : 4 * LONG], lane=2, priority=1)
    steps = [machine.step() for _ in range(10)]
    assert [row.request for row in steps[0].admitted] == [high, low]
    assert start_of(high, steps) == 4
    assert [request for request, *_ in reads(steps[:4])] == [high] * 4
    machine.run()
    assert machine.finished == [high, low, other, late]


@pytest.mark.parametrize("client", [None, "the same"])
def test_a_very_long_prompt_lets_short_ones_through_and_goes_on(client):
    machine = Machine(250)
    long = machine.add(DOCUMENT, lane=4, client=client)
    steps = [machine.step() for _ in range(20)]
    short = [machine.add((n, *DOCUMENT[:LONG]), lane=4, client=client) for n in range(3)]
    steps += [machine.step() for _ in range(10)]
    assert all(start_of(request, steps) < 28 for request in short)
    # New ones without end do not stop the long one.
    for n in range(20):
        machine.add((n, *DOCUMENT[1:LONG]), lane=4, client=client, max_tokens=1)
        steps.append(machine.step())
    assert sum(request is long for request, *_ in reads(steps[-20:])) >= 5
    machine.run()


def test_clients_take_turns_in_line_and_in_reading():
    machine = Machine(250)
    many = [machine.add((n, *DOCUMENT[:100]), lane=1, client="many") for n in range(6)]
    few = [machine.add((n, *DOCUMENT[1:101]), lane=1, client="few") for n in range(2)]
    machine.run()
    assert machine.finished == [many[0], few[0], many[1], few[1], *many[2:]]
    machine = Machine(250)
    for n in range(3):
        machine.add((n, *DOCUMENT[: 10 * LONG]), lane=4, client="many")
    few = machine.add((9, *DOCUMENT[: 10 * LONG]), lane=4, client="few")
    order = [request is few for request, *_ in reads([machine.step() for _ in range(12)])]
    assert order == [False, True] * 6


def test_a_new_client_has_the_next_turn_and_then_every_second():
    machine = Machine(250)
    machine.add(DOCUMENT[: 40 * LONG], lane=4, client="a")
    for _ in range(20):
        machine.step()
    new = machine.add(DOCUMENT[1 : 5 * LONG], lane=4, client="b")
    order = [request is new for request, *_ in reads([machine.step() for _ in range(10)])]
    assert order == [True, False] * 5


def test_a_short_prompt_comes_before_the_next_chunk_of_a_long_one_and_many_do_not_stop_it():
    machine = Machine(250)
    long = machine.add(DOCUMENT[: 40 * LONG], lane=4)
    for _ in range(7):
        machine.step()
    short = machine.add(DOCUMENT[1 : 4 * SHORT], lane=4)
    order = [request is short for request, *_ in reads([machine.step() for _ in range(5)])]
    assert order == [True] * 4 + [False]
    # Of short ones without end, three of which are there at a time, each has as much as the long.
    sizes = {True: 0, False: 0}
    for n in range(200):
        machine.add((n, *DOCUMENT[2:SHORT]), lane=4, max_tokens=1)
        for request, _, size, *_ in reads([machine.step()]):
            sizes[request is long] += size
    assert 0.3 < sizes[True] / sizes[False] < 0.6
    machine.run()


def test_each_group_reads_a_chunk_per_step_and_prefixes_attract_requests():
    machine = Machine(100, groups=2)
    one = machine.add(DOCUMENT[: 4 * LONG], lane=4)
    two = machine.add(DOCUMENT[1 : 4 * LONG], lane=4)
    steps = machine.run()
    assert [len(step.reads) for step in steps] == [2] * 4 + [0]
    assert {one.rows[0].group, two.rows[0].group} == {0, 1}
    for first in (two, one):
        later = machine.add((*first.prompts[0][: 3 * LONG], 5, 5), lane=4)
        machine.run()
        assert later.rows[0].group == first.rows[0].group
        assert later.num_shared == 3 * LONG


def test_a_row_lends_its_turn_to_the_one_whose_tail_it_waits_for():
    machine = Machine(100)
    low = machine.add(DOCUMENT[:200], lane=4)
    machine.step()
    other = machine.add(DOCUMENT[1 : 3 * LONG], lane=4, priority=1)
    high = machine.add(DOCUMENT[:200], lane=4, priority=2)
    steps = [machine.step() for _ in range(4)]
    assert [request for request, *_ in reads(steps[:3])] == [low] * 3
    assert (high.num_read, low.num_read) == (0, 199)
    assert start_of(high, steps) == 3
    assert [request for request, *_ in reads(steps[3:])] == [other]


@pytest.mark.parametrize("after", range(8))
def test_a_request_is_cancelled_in_any_state(after):
    machine = Machine(40)
    before = machine.add(DOCUMENT[1:700], lane=2, max_tokens=40)
    pair = machine.add(DOCUMENT[:600], DOCUMENT[:99], lane=4, max_tokens=40)
    shares = machine.add(DOCUMENT[:600], lane=4)
    waiting = machine.add((1, 2), lane=2, max_tokens=40)
    behind = [machine.add((n, 2), lane=2) for n in range(3)]
    for _ in range(after):
        machine.step()
    cancelled = [pair, waiting, behind[1]]
    for request in cancelled:
        request.is_cancelled = True
    gone = [request for request in cancelled if request not in machine.finished]
    step = machine.step()
    assert len(step.ended) == len(gone)
    assert set(step.ended) == set(gone)
    for request in cancelled:
        machine.scheduler.finish(request)  # has no effect on one that was dropped
    machine.run()
    assert {*machine.finished, *gone} == {before, pair, shares, waiting, *behind}
    assert machine.scheduler.pages[0].num_used == 0
    assert shares.num_read + shares.num_shared == 599


def test_a_chunk_of_a_request_that_has_just_finished_changes_nothing():
    machine = Machine(40)
    request = machine.add(DOCUMENT[: 2 * LONG], lane=4)
    (read,) = machine.scheduler.plan().reads
    machine.scheduler.finish(request)
    machine.scheduler.has_read(read)
    machine.scheduler.check()
    assert machine.scheduler.is_idle
    assert machine.scheduler.pages[0].num_kept == 0


def test_a_tail_whose_reader_is_cancelled_is_read_by_another_row():
    machine = Machine(40)
    first = machine.add(DOCUMENT[:200], lane=4)
    second = machine.add(DOCUMENT[:200], lane=4)
    machine.step()
    machine.step()
    first.is_cancelled = True
    machine.run()
    assert (second.num_read, second.num_shared) == (199, 0)


def test_requests_that_cannot_run_are_refused():
    with pytest.raises(ValueError, match="at least one id"):
        Request((), max_tokens=1)
    with pytest.raises(ValueError, match="at least one prompt"):
        Request(max_tokens=1)
    machine = Machine(40, groups=2)
    for prompts, lane in (((1,),), 3), (((1,), (2,)), 2):
        with pytest.raises(ValueError, match="do not fit"):
            machine.add(*prompts, lane=lane)
    request = machine.add((1,), lane=2)
    with pytest.raises(ValueError, match="once"):
        machine.scheduler.add(request)


LENGTHS = (1, 2, 70, 300, 511, 512, 513, 600, 1025, 1500, 1700)


def random_request(machine: Machine, rng: random.Random, prompts: list[tuple[int, ...]]) -> Request:
    count = 1 + (rng.random() < 0.2)
    return machine.add(
        *(rng.choice(prompts)[: rng.choice(LENGTHS)] for _ in range(count)),
        max_tokens=rng.choice((1, 8, 20, 300, 600)),
        lane=rng.choice((4, 8)),
        priority=rng.choice((0, 0, 0, 1)),
        client=rng.choice((None, "a", "b")),
        reuse=rng.choice((None, None, None, None, 0, 600)),
    )


@pytest.mark.parametrize(("groups", "sp"), [(1, 1), (2, 1), (2, 4)])
def test_rows_keep_their_pages_whatever_happens(groups, sp):
    rng = random.Random(groups * 10 + sp)
    prompts = [DOCUMENT[i * 2000 : i * 2000 + 2000] for i in range(3)]
    prompts.append(prompts[0][: LONG + 20] + prompts[1])
    machine = Machine(2 + 20 // sp, groups=groups, sp=sp)
    requests, steps = [], []
    for n in range(200):
        if rng.random() < 0.3:
            requests.append(random_request(machine, rng, prompts))
            for _ in range(rng.choice((0, 0, 3))):
                requests.append(machine.add(*requests[-1].prompts, lane=requests[-1].lane))
        if requests and rng.random() < 0.05:
            rng.choice(requests[-12:]).is_cancelled = True
        steps.append(machine.step())
        if n == 120:
            machine.scheduler.enlarge(3 + 24 // sp)
    steps += machine.run()
    for done in ("wants", "copies", "ended"):
        assert sum(bool(getattr(step, done)) for step in steps) >= 3
    for request in requests:
        assert request in machine.finished or request.is_cancelled
        if request in machine.finished:
            lengths = [row.num_to_read for row in request.rows]
            assert request.num_read + request.num_shared == sum(lengths)
            if (most := request.reuse) is not None:
                assert all(row.num_shared <= most for row in request.rows)
    assert all(pages.num_used == 0 for pages in machine.scheduler.pages)
    assert machine.scheduler._clients_read.is_empty
    assert machine.scheduler._rows_read.is_empty
    assert not machine.scheduler._admissions._last
    assert sum(request.num_shared for request in requests) > 10_000
