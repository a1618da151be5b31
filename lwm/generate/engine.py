"""Reads prompts and continues them: requests of any threads, many together, in one pool of pages.

Knows ids and not text. One thread launches all device programs; others set flags and wait.
"""

import atexit
import itertools
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from lwm.distributed import explain
from lwm.errors import UserError
from lwm.generate.grammar import Grammar
from lwm.generate.pages import SHORT
from lwm.generate.programs import Programs
from lwm.generate.replay import Leader, follow
from lwm.generate.requests import Request, Tagged
from lwm.generate.runner import Load, Runner
from lwm.generate.work import Finished
from lwm.model.config import CacheDtype
from lwm.model.llama import Llama
from lwm.model.pool import PAGE, PagePool
from lwm.sampling_params import BIASES, TOPS
from lwm.sharding import require_divisible

_T = TypeVar("_T")
_NUMBERS = itertools.count()


class Engine:
    """Reads and continues requests in one pool of pages.

    A request's answer is the same to the last bit alone and amid others, in any order, and
    whether or not a prefix of its prompt was read before; it depends on the mesh and on the
    width of its lane.
    """

    def __init__(
        self,
        model: Llama,
        mesh: Mesh,
        *,
        grammar: Grammar | None = None,
        stop_places: int = 8,
        pool_tokens: int | None = None,
        cache_dtype: CacheDtype | None = None,
        require_memory: Callable[[int, PagePool | None], None] = lambda tokens, pool: None,
    ):
        """Starts without a page; the first request allocates the pool.

        Args:
            model: The model.
            mesh: Its mesh.
            grammar: Rules which id may follow which; None: all requests write text only.
            stop_places: Stop ids of a request at most.
            pool_tokens: Tokens in the pool of each device; None: it grows with the requests.
            cache_dtype: Type of keys and values in the pool; None: that of activations.
            require_memory: Called with the tokens of a larger pool and the pool that it
                replaces; raises UserError if the devices have no memory for it.

        Raises:
            UserError: A chunk of a prompt does not divide over sp, or there is no memory for the
                pool.
        """
        require_divisible(mesh, "tokens of a chunk", SHORT, ("sp",))
        self.mesh = mesh
        self._stop_places, self._require_memory = stop_places, require_memory
        self._most = None if pool_tokens is None else -(-pool_tokens // PAGE) + 1
        with jax.set_mesh(mesh):
            model = model.for_generation()
        self._programs = Programs(
            model, mesh, grammar=grammar, stop_places=stop_places, cache_dtype=cache_dtype
        )
        self._number, self._leader = next(_NUMBERS), None
        if jax.process_count() > 1 and jax.process_index() == 0:
            self._leader = Leader(self._programs, self._number)
        self._runner = Runner(
            self._leader or self._programs,
            grammar=grammar,
            most=self._most,
            require_memory=require_memory,
        )
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_working = False
        self._arrived: deque[Request] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._is_closing = False
        atexit.register(_close, weakref.ref(self))

    def submit(self, request: Request) -> None:
        """Adds a request; its events come in `request.events`, an exception or `Finished` last.

        The request's `work` is a `Work`; an event is a `Reading`, `Scores`, or what `Work.read`
        returns.

        Raises:
            ValueError: The request does not fit into the context or its lane, has too many stop
                ids, or has ids or a seed out of range.
            UserError: It needs more pages than the pool may have.
        """
        self._check(request)
        self._add([request])

    def stream(self, request: Request) -> Generator[Any]:
        """Submits a request, and yields its events; closing the generator cancels it.

        Raises:
            ValueError: See `submit`.
            UserError: See `submit`.
        """
        events = self._events(request)
        next(events)  # from here on, closing it cancels the request
        self.submit(request)
        return events

    def gather(self, requests: Sequence[Request]) -> Generator[tuple[int, Any]]:
        """Submits requests, and yields their events with the number of each.

        An exception among the events is raised; closing the generator cancels all.

        Raises:
            ValueError: See `submit`.
            UserError: See `submit`.
        """
        inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        for number, request in enumerate(requests):
            request.events = Tagged(inbox, number)
            self._check(request)
        self._reserve_for(requests)
        events = self._gathered(requests, inbox)
        next(events)  # from here on, closing it cancels the requests
        self._add(requests)
        return events

    def run(self, function: Callable[[], _T]) -> _T:
        """Calls a function on the thread that launches device programs, and returns its result."""
        if threading.current_thread() is self._thread:
            return function()
        future: Future[_T] = Future()
        with self._lock:
            self._calls.append((function, future))
            self._start()
        return future.result()

    def reserve(self, tokens: int) -> None:
        """Makes the pool so large, for each device, when it grows next, if memory allows."""
        self._runner.least = max(self._runner.least, -(-tokens // PAGE) + 1)

    def warm_up(self, lanes: Sequence[int], *, scores: bool = True) -> None:
        """Compiles all programs for lanes of these widths, so that no request waits for one.

        Allocates the pool with its fixed size, or with the one asked for with `reserve`. If it
        grows later, programs are compiled again as they are needed.

        Args:
            lanes: The widths.
            scores: Prompts are scored, too.

        Raises:
            UserError: There is no memory for the pool.
        """
        self.run(lambda: self._runner.warm_up(lanes, scores=scores))

    @property
    def groups(self) -> int:
        """Groups of devices that hold whole rows: the product of dp and fsdp."""
        return self._runner.groups

    @property
    def is_idle(self) -> bool:
        """True if no request waits or runs."""
        return not self._is_working

    @property
    def pool_tokens(self) -> int:
        """Tokens for which each device has pages; a row's tokens are split over sp."""
        return (self._runner.per_device - 1) * PAGE

    @property
    def load(self) -> Load:
        """Pages in use, and the programs that have run so far."""
        return self._runner.load

    def close(self) -> None:
        """Cancels all requests, and waits for the program that is running."""
        self._is_closing = True
        # Even a thread without work has to leave JAX, before the interpreter ends under it.
        if (thread := self._thread) is not None:
            thread.join()
        self._runner.fail(CancelledError())  # frees the pool
        if self._leader is not None:
            self._leader.close()
            self._leader = None

    def follow(self) -> None:
        """Takes part in the work of process 0, on all other processes, until it closes its engine.

        Raises:
            Exception: A program has failed here and not on process 0.
        """
        assert jax.process_index() > 0
        follow(self._programs, self._number)

    def _events(self, request: Request) -> Generator[Any]:
        assert isinstance(request.events, queue.SimpleQueue)
        try:
            yield None
            while True:
                event = request.events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            request.is_cancelled = True

    def _gathered(
        self, requests: Sequence[Request], inbox: "queue.SimpleQueue[tuple[int, Any]]"
    ) -> Generator[tuple[int, Any]]:
        left = len(requests)
        try:
            yield -1, None
            while left:
                number, event = inbox.get()
                if isinstance(event, BaseException):
                    raise event
                left -= isinstance(event, Finished)
                yield number, event
        finally:
            for request in requests:
                request.is_cancelled = True

    def _check(self, request: Request) -> None:
        longest, context = max(map(len, request.prompts)), self._runner.model.config.max_context
        if max(map(request.num_held, request.prompts)) > context:
            raise ValueError(f"{longest} ids and {request.max_tokens} more do not fit in {context}")
        ids = self._runner.model.config.tokens.size
        if min(map(min, request.prompts)) < 0 or max(map(max, request.prompts)) >= ids:
            raise ValueError(f"a prompt has ids from 0 to {ids - 1}")
        if not 0 <= request.work.plan.seed < 2**32:
            raise ValueError("a seed is from 0 to 2³² - 1")
        lane, rows = request.lane, len(request.prompts)
        if lane % self._runner.groups or lane // self._runner.groups < rows:
            groups = self._runner.groups
            raise ValueError(f"{rows} rows do not fit in {lane} slots of {groups} groups")
        plan, most = request.work.plan, self._runner.model.config.tokens.text
        if len(plan.stop_ids) > self._stop_places:
            raise ValueError(f"a request has at most {self._stop_places} stop ids")
        if len(plan.logit_bias) > BIASES or plan.top_logprobs > TOPS:
            raise ValueError(f"a request has at most {BIASES} biases and {TOPS} likeliest ids")
        if not all(0 <= token < most for token in plan.logit_bias):
            raise ValueError(f"biases are of text ids, from 0 to {most - 1}")
        pages = self._num_pages(request)
        if self._most is not None and pages >= self._most:
            raise UserError(
                f"the request needs a cache of {pages * PAGE:,} tokens, but the pool has "
                f"{(self._most - 1) * PAGE:,}; give more with --pool-tokens, or shorten it"
            )
        if pages >= self._runner.per_device and self._most is None:
            # Between two steps, since a program that runs has taken the pool.
            self.run(lambda: self._require_memory(pages * PAGE, self._runner.pool))

    def _reserve_for(self, requests: Sequence[Request]) -> None:
        """Reserves pages for the largest requests that run at once, so that the pool grows once."""
        if not requests:
            return
        slots = max(request.lane // len(request.prompts) for request in requests)
        sizes = sorted(map(self._num_pages, requests), reverse=True)[:slots]
        self.reserve(-(-sum(sizes) // self.groups) * PAGE)

    def _num_pages(self, request: Request) -> int:
        """Returns the pages that a request needs on each device, at most."""
        tokens_a_page = PAGE * self._programs.sp
        return sum(-(-request.num_held(ids) // tokens_a_page) for ids in request.prompts)

    def _add(self, requests: Sequence[Request]) -> None:
        with self._lock:
            self._arrived += requests
            self._start()

    # The rest runs on the engine's thread.

    def _start(self) -> None:
        """Starts a thread unless one works; the caller holds the lock."""
        if not self._is_working:
            self._is_working = True
            self._thread = threading.Thread(target=self._work, name="lwm-engine", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Works until there is nothing to do."""
        with jax.set_mesh(self.mesh):
            while self._take():
                try:
                    self._runner.step()
                except BaseException as error:
                    explain()
                    self._runner.fail(error)

    def _take(self) -> bool:
        """Takes what has arrived, and runs calls; ends the thread if there is nothing to do."""
        with self._lock:
            arrived, calls = list(self._arrived), list(self._calls)
            self._arrived.clear()
            self._calls.clear()
            if self._is_closing:
                for _, future in calls:
                    future.cancel()
                self._runner.fail(CancelledError())
                for request in arrived:
                    request.events.put(CancelledError())
            if self._is_closing or (self._runner.is_idle and not arrived and not calls):
                # First: whatever is found wrong, a later request is answered.
                self._is_working = False
                self._runner.check()
                return False
        for function, future in calls:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        for request in arrived:
            try:
                self._runner.add(request)
            except Exception as error:
                request.events.put(error)
        return True


def _close(engine: "weakref.ref[Engine]") -> None:
    if (own := engine()) is not None:
        own.close()
