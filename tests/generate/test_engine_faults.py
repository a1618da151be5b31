"""Threads, cancelled requests, and faults: what happens to one request, and to those beside it."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import jax
import numpy as np
import pytest

from lwm.generate import slots
from lwm.generate.engine import Engine
from lwm.generate.pace import Pace
from lwm.generate.plan import GenerationPlan
from lwm.generate.sampling import Sampler
from lwm.generate.work import Finished, Written
from lwm.model.llama import Llama
from lwm.sharding import make_mesh

LANE = 2
PLAN = GenerationPlan(max_tokens=24, sampler=Sampler(), seed=1)
LONG_PLAN = GenerationPlan(max_tokens=400)
PROMPTS = [np.random.default_rng(0).integers(0, 256, n).tolist() for n in (30, 5, 600, 64)]


@pytest.fixture(scope="module")
def model(tiny, kept):
    with jax.set_mesh(make_mesh()):
        yield kept(tiny(num_layers=1, num_heads=4, num_kv_heads=2, max_context=1024))


@pytest.fixture(scope="module")
def start(model):
    """Starts an engine that has read nothing."""
    return lambda: Engine(model, jax.sharding.get_mesh(), pool_tokens=4096)


@pytest.fixture(scope="module")
def engine(start):
    return start()


@pytest.fixture
def requests(request_for):
    return lambda: [request_for(PLAN, prompt, lane=LANE) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def wanted(start, ask, request_for):
    """Answers without any fault."""
    found = ask(start(), *(request_for(PLAN, prompt, lane=LANE) for prompt in PROMPTS))
    return [each.bits for each in found]


def require_idle(engine):
    """Requires that nothing is left of any request."""
    engine.run(engine._runner.check)
    assert engine._runner.is_idle


def test_threads_share_an_engine(engine, wanted, requests, ask):
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: ask(engine, *requests()), range(6)))
    assert [[each.bits for each in every] for every in found] == [wanted] * 6
    require_idle(engine)


def test_a_reader_that_raises_ends_its_own_request_only(engine, wanted, requests, ask, request_for):
    def read(written):
        raise ZeroDivisionError("read")

    broken = request_for(PLAN, PROMPTS[0], lane=LANE, read=read)
    first, *others = ask(engine, broken, *requests())
    assert isinstance(first.last, ZeroDivisionError)
    assert [each.bits for each in others] == wanted
    with pytest.raises(ZeroDivisionError):
        list(engine.stream(request_for(PLAN, PROMPTS[0], lane=LANE, read=read)))
    require_idle(engine)


def test_a_reader_ends_a_row_wherever_bursts_end(monkeypatch, engine, request_for, wanted):
    stop = wanted[0][0][17]
    end = wanted[0][0].index(stop) + 1
    for steps in (1, 5, 32):
        monkeypatch.setattr(Pace, "steps", lambda self, steps=steps: steps)

        def read(written):
            ids = written.ids
            cut = ids[: ids.index(stop) + 1] if stop in ids else ids
            return Written(cut, written.logprobs[: len(cut)]), stop in ids

        events = list(engine.stream(request_for(PLAN, PROMPTS[0], lane=LANE, read=read)))
        written = [event for event in events if isinstance(event, Written)]
        assert [token for each in written for token in each.ids] == wanted[0][0][:end]
        assert [x for each in written for x in each.logprobs] == wanted[0][1][:end]
        assert len(written[0].ids) == 1, "the first id comes alone"
        assert events[-1] == Finished("stop", 0)
        assert len(written) == 1 + -(-(end - 1) // steps)


@pytest.mark.parametrize("place", ["extend", "burst", "after a burst"])
def test_a_program_that_fails_fails_what_is_open_and_nothing_later(
    monkeypatch, engine, wanted, requests, ask, place
):
    owner, name = (Llama, "extend") if place == "extend" else (slots, "burst")
    program, left = getattr(owner, name), [1]

    def fails_once(*arguments, **options):
        if not left:
            return program(*arguments, **options)
        left.clear()
        if place == "after a burst":
            program(*arguments, **options)
        raise MemoryError("no memory")

    monkeypatch.setattr(owner, name, fails_once)
    found = ask(engine, *requests())
    assert {type(each.last) for each in found} == {MemoryError}
    assert [each.bits for each in ask(engine, *requests())] == wanted
    require_idle(engine)


def test_what_is_closed_stops_and_gives_its_place_to_others(
    engine, wanted, requests, ask, request_for
):
    while_reading = engine.stream(request_for(LONG_PLAN, PROMPTS[2], lane=LANE))
    while_writing = engine.stream(request_for(LONG_PLAN, PROMPTS[1], lane=LANE))
    waiting = engine.stream(request_for(LONG_PLAN, PROMPTS[0], lane=LANE))
    while not isinstance(next(while_writing), Written):
        pass
    for each in (while_reading, while_writing, waiting):
        each.close()
    assert [each.bits for each in ask(engine, *requests())] == wanted
    unread = engine.gather([request_for(LONG_PLAN, PROMPTS[0], lane=LANE)])
    unread.close()
    (next_one,) = ask(engine, request_for(PLAN, PROMPTS[0], lane=LANE))
    assert next_one.bits == wanted[0]
    require_idle(engine)


def test_a_request_may_be_cancelled_between_chunks(start, wanted, ask, request_for, requests):
    engine = start()
    cancelled = request_for(LONG_PLAN, (PROMPTS[2] + PROMPTS[0])[:100], lane=LANE)
    events = engine.stream(cancelled)
    assert next(events).done == 64
    events.close()
    assert [each.bits for each in ask(engine, *requests())] == wanted
    require_idle(engine)
    assert not cancelled.rows[0].holding.pages


def test_a_closed_engine_cancels_all_and_answers_no_more(start, request_for):
    engine = start()
    running = [engine.stream(request_for(LONG_PLAN, prompt)) for prompt in PROMPTS[:3]]
    while not isinstance(next(running[0]), Written):
        pass
    engine.close()
    for events in running:
        with pytest.raises(CancelledError):
            list(events)
    assert engine.pool_tokens == 0, "the memory is given back"
    with pytest.raises(CancelledError):
        list(engine.stream(request_for(PLAN, PROMPTS[0])))
    with pytest.raises(CancelledError):
        engine.run(lambda: 1)
    engine.close()


def test_functions_run_on_the_thread_that_launches_programs(engine, wanted, requests, ask):
    def nested():
        return engine.run(threading.current_thread)

    assert engine.run(nested).name == "lwm-engine"
    with pytest.raises(ZeroDivisionError):
        engine.run(lambda: 1 / 0)
    assert [each.bits for each in ask(engine, *requests())] == wanted


def test_nothing_asked_for_is_answered_at_once(engine, ask, request_for):
    request = request_for(GenerationPlan(max_tokens=0), PROMPTS[2], lane=LANE)
    (found,) = ask(engine, request)
    assert (found.ids, found.last) == ([], Finished("length", 0))
    assert not request.num_read
    require_idle(engine)


def test_closing_waits_for_a_thread_that_has_found_no_more_work(start, monkeypatch):
    """Else the interpreter may end under it, which aborts the process."""
    engine = start()
    checked = threading.Event()

    def check():
        checked.set()
        time.sleep(0.3)

    monkeypatch.setattr(engine._runner, "check", check)
    engine.run(lambda: None)
    assert checked.wait(60)
    engine.close()
    assert not engine._thread.is_alive()


def test_an_engine_that_waits_for_nothing_has_no_thread(engine, ask, requests):
    ask(engine, *requests())
    engine.run(lambda: None)
    engine._thread.join(60)
    assert not engine._thread.is_alive()
