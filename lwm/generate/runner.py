"""Runs the steps of a scheduler on the devices: chunks of prompts, and bursts of all rows."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import numpy as np

from lwm.errors import UserError
from lwm.generate.decoding import Tops
from lwm.generate.grammar import Grammar
from lwm.generate.pace import Pace
from lwm.generate.pages import LONG
from lwm.generate.programs import Programs
from lwm.generate.replay import Leader
from lwm.generate.requests import Request
from lwm.generate.scheduler import Copy, Read, Scheduler, Step
from lwm.generate.slots import Slots, likeliest
from lwm.generate.work import Finished, FinishReason, Reading, Scores, Written
from lwm.model.pool import PAGE, PagePool, table_width


class Load(NamedTuple):
    """Pages in use, and the programs that have run so far."""

    pages: int
    """Pages of all devices that rows may have."""
    used: int
    """Pages that rows hold."""
    chunks: int
    """Chunks of prompts that were read."""
    bursts: int
    """Calls of the decoding loop."""
    steps: int
    """Steps of the decoding loop, each of which writes one id to each row of a lane."""


class Runner:
    """Requests, scheduler and programs of an engine. One thread uses it, under the mesh."""

    def __init__(
        self,
        programs: Programs | Leader,
        *,
        grammar: Grammar | None,
        most: int | None,
        require_memory: Callable[[int, PagePool | None], None],
    ):
        """Starts without a page; see `Engine` for the arguments.

        `most` is the number of pages of each device, page 0 included; None: as memory allows.
        """
        self.programs, self.model, self.grammar = programs, programs.model, grammar
        self._most, self._require_memory = most, require_memory
        self.least = 0
        """Pages of each device, page 0 included, to which the pool grows at once."""
        self._chunks = self._bursts = self._steps = 0
        self._forget()

    @property
    def groups(self) -> int:
        """Groups of devices that hold whole rows."""
        return self.programs.groups

    @property
    def pool(self) -> PagePool | None:
        """The pool; None before its first use."""
        return self.programs.pool

    @property
    def is_idle(self) -> bool:
        """True if no request waits or runs."""
        return not self.requests

    @property
    def per_device(self) -> int:
        """Pages of each device, page 0 included."""
        return self._scheduler.pages[0].per_device

    @property
    def load(self) -> Load:
        """Pages in use, and the programs that have run so far; any thread may ask."""
        groups = self._scheduler.pages
        pages = sum(group.sp * (group.per_device - 1) for group in groups)
        used = sum(group.num_used for group in groups)
        return Load(pages, used, self._chunks, self._bursts, self._steps)

    def add(self, request: Request) -> None:
        """Puts a request in line; one that asks for nothing has its answer at once."""
        if not request.max_tokens and request.work.scores_from is None:
            request.events.put(Finished("length", 0))
            return
        self._scheduler.add(request)
        self.requests[request] = None

    def check(self) -> None:
        """Checks that no page and no slot is lost, and starts anew if one is.

        Raises:
            AssertionError: See `Scheduler.check`.
        """
        try:
            self._scheduler.check()
        except AssertionError:
            self._forget()
            raise

    def fail(self, error: BaseException) -> None:
        """Sends an error to all requests, and starts anew: the pool may be lost."""
        for request in self.requests:
            request.events.put(error)
        self._forget()

    def warm_up(self, lanes: Iterable[int], *, scores: bool) -> None:
        """Compiles programs for lanes of these widths, and allocates the pool; see `Engine`."""
        size = self.least if self._most is None else self._most
        if is_larger := size > self.per_device:
            self._require_memory((size - 1) * PAGE, self.pool)
        try:
            if is_larger:
                self._enlarge(size)
            self.programs.warm_up(tuple(lanes), scores)
        except BaseException as error:
            self.fail(error)
            raise

    def step(self) -> None:
        """Takes one step: each lane writes a burst, and at most one chunk per group is read.

        Bursts come first: an answer that has just started does not wait for a chunk of another.
        """
        step = self._scheduler.plan()
        for request in step.ended:
            self._end(request, self._refusals.pop(request, None) or CancelledError())
        if step.short:
            self._grow(step)
        for copy in step.copies:
            self._copy(copy)
        for request in step.started:
            self._seat(request)
        for width in step.lanes:
            self._write(width)
        self._read(step.reads)

    def _grow(self, step: Step) -> None:
        """Enlarges the pool for the first in line, to an ample size if memory allows.

        If it does not, they wait for rows that run to give back pages; if there are none, they end.
        """
        least = self.per_device + step.wants
        running = bool(self._scheduler.running)
        if self._most is not None:
            sizes = [self._most] if self.per_device < self._most else []
        else:
            ample = _ample(least)
            reserved = [self.least >> half for half in range(8)]
            sizes = [*(size for size in reserved if size > ample), ample, least]
        if running and least >= self._refused:
            return
        refusal = None
        for size in sizes:
            try:
                self._require_memory((size - 1) * PAGE, self.pool)
            except UserError as error:
                refusal = error
            else:
                self._enlarge(size)
                return
        if running:
            self._refused = least
        elif refusal is not None:
            for request in step.short:
                request.is_cancelled = True  # leaves its line with the next step
                self._refusals[request] = refusal

    def _enlarge(self, size: int) -> None:
        self.programs.enlarge(size)
        self._scheduler.enlarge(size)

    def _read(self, reads: Sequence[Read]) -> None:
        """Launches chunks; see `Programs.read`."""
        for size in sorted({read.size for read in reads}):
            now = [read for read in reads if read.size == size]
            self._extend(now, size)
            for read in now:
                self._scheduler.has_read(read)
                request = read.row.request
                if read.row.number == 0:
                    request.events.put(Reading(read.row.length, len(read.row.prompt)))
                first = request.work.scores_from
                if first is not None and first <= read.start + read.count:
                    request.events.put(self._scores(read, max(first, read.start + 1)))

    def _extend(self, reads: Sequence[Read], size: int) -> None:
        """Reads a chunk of one row per group."""
        tokens = np.zeros((self.groups, size), np.int32)
        pages = np.zeros((self.groups, table_width(self.model.config.max_context)), np.int32)
        lengths, offsets = np.zeros((2, self.groups), np.int32)
        for read in reads:
            group, held = read.row.group, read.row.holding.pages
            tokens[group, : read.count] = read.row.prompt[read.start : read.start + read.count]
            pages[group, : len(held)] = held
            lengths[group], offsets[group] = read.start, read.row.holding.offset
        self.programs.read(tokens, pages, lengths, offsets)
        self._chunks += len(reads)

    def _scores(self, read: Read, first: int) -> Scores:
        """Returns the scores of ids after those of a chunk, from the id `first` on."""
        row = read.row
        targets = np.zeros((self.groups, read.size), np.int32)
        after = row.prompt[read.start + 1 : read.start + read.count + 1]
        targets[row.group, : read.count] = after
        wanted = slice(first - read.start - 1, read.count)
        nll, is_likeliest = (each[row.group, wanted] for each in self.programs.score(targets))
        scores = Scores(first, (-nll).tolist(), is_likeliest.tolist())
        if not (count := row.request.work.plan.top_logprobs):
            return scores
        ids, logprobs = (each[row.group, wanted] for each in self.programs.rank(targets))
        # One id has one value.
        logprobs = np.where(ids == targets[row.group, wanted, None], -nll[:, None], logprobs)
        return scores._replace(tops=likeliest(Tops(ids, logprobs), slice(None), count))

    def _copy(self, copy: Copy) -> None:
        pages = np.zeros((2, self.groups * self.programs.sp), np.int32)
        pages[:, copy.group * self.programs.sp + copy.device] = copy.source, copy.destination
        self.programs.copy(*pages)

    def _seat(self, request: Request) -> None:
        """Gives the rows of a request, whose prompts have been read, to their lane."""
        work, state = request.work, None
        if self.grammar is not None:
            vision = work.plan.vision
            state = self.grammar.plain() if vision is None else vision.state
        leader = request.rows[0].slot
        for row in request.rows:
            self.programs.seat(
                request.lane, row.slot, work.plan, row.prompt, row.holding, state, leader
            )
        self._seated.setdefault(request.lane, {})[request] = None
        if not request.max_tokens:
            self._finish(request, "length")

    def _write(self, width: int) -> None:
        """Continues the rows of a lane, and hands out what they have written."""
        slots, pace = self.programs.slots(width), self._paces.setdefault(width, Pace())
        rows = list(self._seated[width])
        if not rows:
            return
        # The first id of an answer is handed out alone.
        is_first = any(slots.count(request.rows[0].slot) == 0 for request in rows)
        steps = 1 if is_first else pace.steps()
        begun = time.perf_counter()
        block = self.programs.write(width, steps)
        taken = block.ids.shape[1]
        pace.note(taken, time.perf_counter() - begun)
        self._bursts, self._steps = self._bursts + 1, self._steps + taken
        for request in rows:
            written = block.of(request.rows[0].slot, request.work.plan.top_logprobs)
            self._hand_out(request, written, slots)

    def _hand_out(self, request: Request, written: Written, slots: Slots) -> None:
        work, slot = request.work, request.rows[0].slot
        try:
            event, is_ended = work.read(written)
        except Exception as error:
            self._end(request, error)
            return
        request.events.put(event)
        if is_ended or (written.ids and written.ids[-1] in work.plan.stop_ids):
            self._finish(request, "stop")
        elif slots.is_done(slot):
            self._finish(request, "stop" if slots.is_complete(slot) else "length")

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self._end(request, Finished(reason, request.rows[0].num_shared))

    def _end(self, request: Request, last: Any) -> None:
        """Takes a request out of its slots, and sends its last event."""
        if self._seated.get(request.lane, {}).pop(request, self) is None:
            for row in request.rows:
                self.programs.empty(request.lane, row.slot)
        self._scheduler.finish(request)
        self._refused = math.inf
        self.requests.pop(request, None)
        request.events.put(last)

    def _forget(self) -> None:
        """Starts without a page, a lane or a request."""
        root = hashlib.sha256(repr((LONG, self.model.config, self.model.compute)).encode())
        sp = self.programs.sp
        self._scheduler = Scheduler(1, root=root.digest(), groups=self.groups, sp=sp)
        self.programs.reset()
        self.requests: dict[Request, None] = {}
        """Requests that wait or run."""
        self._seated: dict[int, dict[Request, None]] = {}
        self._paces: dict[int, Pace] = {}
        self._refused = math.inf  # size for which there was no memory, since a request ended
        self._refusals: dict[Request, UserError] = {}  # last events of requests that leave


def _ample(pages: int) -> int:
    """Rounds up, so that a growing conversation compiles few programs and wastes little."""
    step = 8192 // PAGE
    tokens = pages - 1
    return 1 + (-(-tokens // step) * step if tokens > step else 1 << (tokens - 1).bit_length())
