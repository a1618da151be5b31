"""Prompts read and continued: what is written is the same together, alone, again and later."""

import dataclasses
import math
from collections import Counter

import jax
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.generate.engine import Engine
from lwm.generate.plan import GenerationPlan
from lwm.generate.sampling import (
    GREEDY,
    MinP,
    RepetitionPenalty,
    Sampler,
    Temperature,
    TopK,
    TopP,
)
from lwm.generate.work import Finished, Reading
from lwm.model.pool import PAGE
from lwm.sampling_params import BIASES, TOPS
from lwm.sharding import make_mesh

POOL = 10_240
"""Tokens of every pool here, so that nothing is compiled twice."""
LANES = 1, 4
"""A batch of one slot has bits of its own."""


def prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def model(tiny, kept):
    """A model whose keys each serve two queries."""
    with jax.set_mesh(make_mesh()):
        yield kept(tiny(num_layers=1, num_heads=4, num_kv_heads=2, max_context=2048))


@pytest.fixture(scope="module")
def start(model):
    """Starts an engine that has read nothing."""
    return lambda: Engine(model, jax.sharding.get_mesh(), pool_tokens=POOL)


@pytest.fixture(scope="module")
def engine(start):
    return start()


PLANS = [
    GenerationPlan(max_tokens=20),
    GenerationPlan(max_tokens=33, sampler=Sampler(), seed=7),
    GenerationPlan(max_tokens=20, sampler=Sampler(rules=(Temperature(0.7), TopP(0.8))), seed=3),
    GenerationPlan(
        max_tokens=24,
        sampler=Sampler(rules=(RepetitionPenalty(1.5), TopK(20), MinP(0.05))),
        stop_ids=range(6),
        seed=2**32 - 1,
    ),
    GenerationPlan(
        max_tokens=18,
        stop_ids=range(8),
        min_tokens=9,
        presence_penalty=1.5,
        frequency_penalty=-0.5,
        logit_bias={3: 2.0, 200: -100.0},
        top_logprobs=3,
    ),
]
BEGINNING = prompts(520, seed=1)[0]
MIXED = [
    *prompts(3, 70, 256, 257, 300),
    *(BEGINNING + rest for rest in prompts(1, 100, 600)),
    BEGINNING,
    [*BEGINNING[:512], 7],
]
"""Prompts of which some begin alike."""


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "2,1,2,2"])
def test_greedy_answers_are_those_of_the_original(fixtures, original, ask, request_for, mesh_text):
    given = np.load(fixtures / "generation.npz")
    ids, mask = given["text.input_ids"], given["text.attention_mask"]
    runs = [row[seen > 0].tolist() for row, seen in zip(ids, mask, strict=True)]
    with jax.set_mesh(mesh := make_mesh(mesh_text)):
        engine = Engine(original(mesh, stored="scan"), mesh, pool_tokens=1024)
        plan = GenerationPlan(max_tokens=32, stop_ids=[2], top_logprobs=TOPS)
        found = ask(engine, *(request_for(plan, run, lane=4, scores_from=1) for run in runs))
    wanted = given["text.greedy.sequences"][:, ids.shape[1] :].tolist()
    assert [each.ids + [0] * (32 - len(each.ids)) for each in found] == wanted
    for each, run in zip(found, runs, strict=True):
        require_tops(each, run[1:])
        assert [top[0] for top in each.tops] == [*zip(each.ids, each.logprobs, strict=True)]


def require_tops(found, scored, count=TOPS):
    """Checks the likeliest ids of an answer and of the end of its prompt."""
    ids, logprobs = found.ids + scored, found.logprobs + found.scores
    for token, logprob, top in zip(ids, logprobs, found.tops + found.prompt_tops, strict=True):
        values = [value for _, value in top]
        assert len(top) == len(dict(top)) == count
        assert values == pytest.approx(sorted(values, reverse=True), abs=1e-5)
        assert sum(map(math.exp, values)) <= 1 + 1e-5
        assert dict(top).get(token, logprob) == logprob
        assert token in dict(top) or logprob <= values[-1] + 1e-5
    for token, top, is_likeliest in zip(scored, found.prompt_tops, found.is_likeliest, strict=True):
        assert is_likeliest == (top[0][0] == token)


@pytest.mark.parametrize("lane", LANES)
def test_an_answer_has_the_same_bits_in_any_company_and_order(start, ask, request_for, lane):
    """Holds with cold and warm prefixes, and when pages are scarce."""
    rng = np.random.default_rng(2)

    def requests():
        return [
            request_for(PLANS[number % len(PLANS)], prompt, lane=lane)
            for number, prompt in enumerate(MIXED)
        ]

    alone = [ask(start(), request)[0].bits for request in requests()]
    one_by_one = start()
    assert [ask(one_by_one, request)[0].bits for request in requests()] == alone
    engine = start()
    for _ in range(2):
        order = rng.permutation(len(MIXED))
        all_of_them = requests()
        found = ask(engine, *(all_of_them[number] for number in order))
        assert [each.bits for each in found] == [alone[number] for number in order]
    read = sum(request.num_read for request in all_of_them)
    assert read < sum(map(len, MIXED)) / 2, "the second time, chunks are there"


def test_bits_are_those_of_the_lane_and_lanes_share_what_was_read(engine, ask, request_for):
    one, two = (
        [request_for(PLANS[1], prompt, lane=lane) for prompt in MIXED[-4:]] for lane in LANES
    )
    found = ask(engine, *(request for pair in zip(one, two, strict=True) for request in pair))
    for narrow, wide in zip(found[::2], found[1::2], strict=True):
        assert narrow.ids == wide.ids
        np.testing.assert_allclose(narrow.logprobs, wide.logprobs, atol=1e-4)
    assert sum(request.num_read for request in (*one, *two)) < sum(map(len, MIXED[-4:]))


def test_bits_do_not_change_when_the_pool_grows(model, start, ask, request_for):
    long = request_for(dataclasses.replace(PLANS[1], max_tokens=1000), BEGINNING[:20])
    (wanted,) = ask(start(), long)
    growing = Engine(model, jax.sharding.get_mesh())
    again = request_for(long.work.plan, BEGINNING[:20])
    growing.submit(again)
    before = growing.pool_tokens
    ask(growing, request_for(PLANS[0], BEGINNING, lane=4))
    assert growing.pool_tokens > before
    ids = []
    while not hasattr(event := again.events.get(timeout=60), "reason"):
        ids += getattr(event, "ids", [])
    assert ids == wanted.ids


def test_sampling_depends_on_the_seed(engine, ask, request_for):
    (given,) = prompts(14)
    plans = [GenerationPlan(max_tokens=24, sampler=Sampler(), seed=seed) for seed in (4, 9, 4)]
    found = ask(engine, *(request_for(plan, given, lane=4) for plan in plans))
    assert found[0].bits == found[2].bits
    assert found[0].ids != found[1].ids


def test_an_answer_that_is_read_goes_on_as_it_went_on(engine, ask, request_for):
    """Also after its end, which another request did not stop at."""
    (given,) = prompts(30)
    plan = GenerationPlan(max_tokens=60)
    whole = ask(engine, request_for(plan, given))[0].ids
    for count in (1, 5, 34):
        rest = GenerationPlan(max_tokens=60 - count)
        assert ask(engine, request_for(rest, given + whole[:count]))[0].ids == whole[count:]
    stop = dataclasses.replace(plan, stop_ids=[whole[2]])
    ended = ask(engine, request_for(stop, given))[0].ids
    assert ended == whole[: whole.index(whole[2]) + 1]
    rest = GenerationPlan(max_tokens=8)
    found = ask(engine, request_for(rest, given + ended))[0].ids
    assert found == whole[len(ended) :][:8]


def test_a_stop_id_ends_its_row_only(engine, ask, request_for):
    given = prompts(10, 12, 5)
    plan = GenerationPlan(max_tokens=20)
    free = ask(engine, *(request_for(plan, each, lane=4) for each in given))
    others = {id for each in free[1:] for id in each.ids}
    stop = next(id for id in free[0].ids[3:] if id not in others)
    plan = GenerationPlan(max_tokens=20, stop_ids=[stop])
    found = ask(engine, *(request_for(plan, each, lane=4) for each in given))
    assert found[0].ids == free[0].ids[: free[0].ids.index(stop) + 1]
    assert found[0].last.reason == "stop"
    for each, other in zip(found[1:], free[1:], strict=True):
        assert stop not in other.ids
        assert each.bits == other.bits
        assert each.last.reason == "length"


def test_a_prompt_that_parts_from_another_is_as_read_alone(engine, start, ask, request_for):
    beginning, wrong, right = prompts(530, 600, 250, seed=5)
    plan = GenerationPlan(max_tokens=16)
    ask(engine, request_for(plan, beginning + wrong))
    request = request_for(plan, beginning + right)
    (found,) = ask(engine, request)
    assert request.num_shared == found.last.num_cached == 512
    (cold,) = ask(start(), request_for(plan, beginning + right))
    assert found.bits == cold.bits
    assert cold.last.num_cached == 0


def test_prompts_that_are_the_same_are_read_once(start, ask, request_for):
    (given,) = prompts(580)
    plans = [GenerationPlan(max_tokens=12, sampler=Sampler(), seed=seed) for seed in range(4)]
    requests = [request_for(plan, given, lane=4) for plan in plans]
    engine = start()
    found = ask(engine, *requests)
    assert sum(request.num_read for request in requests) == len(given) - 1
    for plan, each in zip(plans, found, strict=True):
        assert ask(start(), request_for(plan, given, lane=4))[0].bits == each.bits


def test_what_is_read_is_shared_with_requests_of_the_same_salt_only(start, ask, request_for):
    engine, plan, (given,) = start(), GenerationPlan(max_tokens=8), prompts(1100)

    def cached(*salts):
        requests = [request_for(plan, given, lane=4, salt=salt) for salt in salts]
        found = ask(engine, *requests)
        assert [each.bits for each in found] == [wanted.bits] * len(salts)
        return [each.last.num_cached for each in found]

    (wanted,) = ask(engine, request_for(plan, given, lane=4))
    assert cached(b"a") == [0]
    assert cached(b"b", b"c", b"d") == [0] * 3  # even where they are read at the same time
    assert cached(b"", b"a", b"d", b"e") == [1024] * 3 + [0]


def test_an_engine_counts_what_it_does(start, ask, request_for):
    engine = start()
    assert engine.load == (0, 0, 0, 0, 0)
    used = []

    def read(written):
        used.append(engine.load.used)
        return written, False

    ask(engine, request_for(GenerationPlan(max_tokens=7), prompts(700)[0], lane=4, read=read))
    load = engine.run(lambda: engine.load)
    assert (load.pages * PAGE, load.chunks, load.steps) == (POOL, 4, 7)
    assert set(used) == {3}
    assert load.used == 0
    assert load.bursts == len(used)


def test_a_short_prompt_waits_for_one_chunk_of_a_long_one_at_most(engine, ask, request_for):
    chunks = []

    def written(found):
        chunks.append(engine.load.chunks)
        return found, False

    long, other = prompts(1900, 20, seed=8)
    short = request_for(GenerationPlan(max_tokens=2), other, lane=4, read=written)

    class Arrival:
        """Submits the short request at the moment when a chunk of the long one has been read."""

        def put(self, event):
            if isinstance(event, Reading) and not chunks:
                chunks.append(engine.load.chunks)
                engine.submit(short)

    reading = request_for(GenerationPlan(max_tokens=1), long, lane=4)
    reading.events = Arrival()
    engine.submit(reading)
    while not isinstance(short.events.get(), Finished):
        pass
    arrived, first, *_ = chunks
    assert first - arrived == 1  # its own chunk


def test_taking_the_likeliest_of_one_is_greedy(engine, ask, request_for):
    (given,) = prompts(10)
    greedy = GenerationPlan(max_tokens=20)
    top1 = dataclasses.replace(greedy, sampler=Sampler(rules=(TopK(1),)), seed=5)
    one, other = ask(engine, *(request_for(plan, given, lane=4) for plan in (greedy, top1)))
    assert one.bits == other.bits


def test_each_row_has_its_own_rules(engine, ask, request_for):
    (given,) = prompts(6)
    samplers = [GREEDY, *(plan.sampler for plan in PLANS[2:4])]
    plans = [GenerationPlan(max_tokens=16, sampler=each, seed=4) for each in samplers]
    together = ask(engine, *(request_for(plan, given, lane=4) for plan in plans))
    for plan, found in zip(plans, together, strict=True):
        same = ask(engine, *(request_for(plan, given, lane=4) for _ in range(3)))
        assert [each.bits for each in same] == [found.bits] * 3
    assert len({tuple(each.ids) for each in together}) == 3


@pytest.mark.parametrize(("presence", "frequency"), [(0.3, 0.0), (0.0, 0.1), (-0.2, 0.3)])
def test_what_has_been_written_is_penalised(engine, ask, request_for, presence, frequency):
    """By OpenAI's rule: for ids of the answer only, once and for each time."""
    plan = GenerationPlan(
        max_tokens=60,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias={5: 1.5, 6: -1.0},
        top_logprobs=TOPS,
    )
    (found,) = ask(engine, request_for(plan, prompts(9)[0], lane=4))
    counts = Counter()
    for token, top in zip(found.ids, found.tops, strict=True):
        values = {
            each: value
            + plan.logit_bias.get(each, 0)
            - presence * (counts[each] > 0)
            - frequency * counts[each]
            for each, value in top
        }
        assert values[token] == pytest.approx(max(values.values()), abs=1e-5)
        counts[token] += 1
    assert max(counts.values()) > 1
    plain = dataclasses.replace(plan, presence_penalty=0.0, frequency_penalty=0.0)
    (other,) = ask(engine, request_for(plain, prompts(9)[0], lane=4))
    assert other.ids != found.ids


def test_biases_choose_and_ban(engine, ask, request_for):
    plan = GenerationPlan(max_tokens=30, logit_bias={77: 100.0})
    wild = GenerationPlan(
        max_tokens=200, sampler=Sampler(), logit_bias=dict.fromkeys(range(60), -100.0)
    )
    one, many = ask(engine, *(request_for(each, [1, 2, 3], lane=4) for each in (plan, wild)))
    assert one.ids == [77] * 30
    assert min(many.ids) >= 60
    assert np.isfinite(one.logprobs).all()


def test_no_stop_id_comes_before_so_many_ids(engine, ask, request_for):
    plan, (given,) = GenerationPlan(max_tokens=40), prompts(20)
    (free,) = ask(engine, request_for(plan, given, lane=4))
    stop = free.ids[3]
    stopped, later = (
        dataclasses.replace(plan, stop_ids=[stop], min_tokens=least, logit_bias={stop: 9.0})
        for least in (0, 25)
    )
    early, late = ask(engine, *(request_for(each, given, lane=4) for each in (stopped, later)))
    assert early.ids[-1] == stop
    assert len(early.ids) <= 4
    assert (late.ids.index(stop), late.last.reason) == (25, "stop")


def test_requests_that_cannot_be_are_refused(model, engine, request_for):
    plan = GenerationPlan(max_tokens=49)
    with pytest.raises(ValueError, match="a prompt at least one id"):
        request_for(plan, [])
    with pytest.raises(ValueError, match="2000 ids and 49 more do not fit in 2048"):
        engine.submit(request_for(plan, [1] * 2000))
    with pytest.raises(ValueError, match="2 rows do not fit in 1 slots"):
        engine.submit(request_for(plan, [1], [2]))
    with pytest.raises(ValueError, match="at most 8 stop ids"):
        engine.submit(request_for(GenerationPlan(max_tokens=1, stop_ids=range(9)), [1]))
    many = dict.fromkeys(range(BIASES + 1), 1.0)
    for more in (
        dataclasses.replace(plan, logit_bias=many),
        dataclasses.replace(plan, top_logprobs=TOPS + 1),
    ):
        with pytest.raises(ValueError, match="at most 64 biases and 20 likeliest ids"):
            engine.submit(request_for(more, [1]))
    with pytest.raises(ValueError, match="biases are of text ids, from 0 to 255"):
        engine.submit(request_for(dataclasses.replace(plan, logit_bias={256: 1.0}), [1]))
    for ids in ([-1], [256]):
        with pytest.raises(ValueError, match="ids from 0 to 255"):
            engine.submit(request_for(plan, [1], ids, lane=4))
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="a seed is from 0"):
            engine.submit(request_for(dataclasses.replace(plan, seed=seed), [1]))
    for ids in ([-1], [256]):
        with pytest.raises(ValueError, match="ids from 0 to 255"):
            engine.submit(request_for(plan, ids))
    with pytest.raises(ValueError, match="a seed is from 0"):
        engine.submit(request_for(GenerationPlan(max_tokens=1, seed=2**32), [1]))
    with pytest.raises(UserError, match="64 tokens of a chunk do not divide by sp 3"):
        Engine(model, make_mesh("sp=3"))
    small = Engine(model, jax.sharding.get_mesh(), pool_tokens=300)
    with pytest.raises(UserError, match=r"cache of 768 tokens, but the pool has 512") as error:
        small.submit(request_for(plan, [1] * 500))
    assert "\n" not in str(error.value)
    engine.submit(twice := request_for(plan, [1]))
    with pytest.raises(ValueError, match="a request is added once"):
        list(engine.stream(twice))


def test_rows_wait_for_pages_and_are_answered(model, engine, ask, request_for):
    """Four rows of two pages each, in a pool of three."""
    plan, given = GenerationPlan(max_tokens=40), prompts(300, 310, 320, 330)
    small = Engine(model, jax.sharding.get_mesh(), pool_tokens=768)
    found = ask(small, *(request_for(plan, each, lane=4) for each in given))
    wanted = ask(engine, *(request_for(plan, each, lane=4) for each in given))
    assert [each.bits for each in found] == [each.bits for each in wanted]


def test_log_probabilities_of_a_prompt_come_with_no_other_bits(engine, ask, request_for):
    plan = GenerationPlan(max_tokens=8)
    wanted = ask(engine, *(request_for(plan, prompt) for prompt in MIXED))
    for _ in range(2):
        requests = [request_for(plan, prompt, scores_from=1) for prompt in MIXED]
        found = ask(engine, *requests)
        assert [each.bits for each in found] == [each.bits for each in wanted]
        assert [len(each.scores) for each in found] == [len(prompt) - 1 for prompt in MIXED]
        assert not any(request.num_shared for request in requests)
    again = [request_for(plan, prompt, scores_from=1) for prompt in reversed(MIXED)]
    assert [each.scores for each in ask(engine, *again)] == [each.scores for each in found[::-1]]
    nothing = GenerationPlan(max_tokens=0)
    (alone,) = ask(engine, request_for(nothing, MIXED[5], scores_from=1))
    assert (alone.ids, alone.scores, alone.last.reason) == ([], found[5].scores, "length")


@pytest.mark.parametrize("plan", PLANS[:4])
def test_the_likeliest_ids_come_with_no_other_bits(engine, ask, request_for, plan):
    (given,) = prompts(300)
    (wanted,) = ask(engine, request_for(plan, given, lane=4))
    few, many = (dataclasses.replace(plan, top_logprobs=count) for count in (2, TOPS))
    with_two, with_all = ask(engine, *(request_for(each, given, lane=4) for each in (few, many)))
    assert with_two.bits == with_all.bits == wanted.bits
    assert wanted.tops == []
    require_tops(with_all, [])
    assert with_two.tops == [top[:2] for top in with_all.tops]
    # Read as a prompt, the answer has the same.
    read = dataclasses.replace(many, max_tokens=0)
    request = request_for(read, given + wanted.ids, lane=4, scores_from=len(given))
    (again,) = ask(engine, request)
    require_tops(again, wanted.ids)
    for ours, theirs in zip(again.prompt_tops, with_all.tops, strict=True):
        same = dict(ours).keys() & dict(theirs).keys()
        assert len(same) >= TOPS - 1
        for token in same:
            assert dict(ours)[token] == pytest.approx(dict(theirs)[token], abs=1e-4)


def test_scores_of_the_end_of_a_prompt_have_the_same_bits_and_share_its_start(
    start, ask, request_for
):
    """The chunks of 512 before the first id that is scored may be another row's."""
    engine, nothing = start(), GenerationPlan(max_tokens=0)
    common = prompts(1100)[0]
    choices = [common + end for end in prompts(5, 300, seed=1)]
    whole = ask(engine, *(request_for(nothing, each, scores_from=1) for each in choices))
    for first, shared in ((1100, 1024), (1025, 1024), (1024, 512), (513, 512), (512, 0)):
        requests = [request_for(nothing, each, scores_from=first, lane=4) for each in choices]
        found = ask(engine, *requests)
        for each, wanted, request in zip(found, whole, requests, strict=True):
            assert each.scores == wanted.scores[first - 1 :]
            assert each.is_likeliest == wanted.is_likeliest[first - 1 :]
            assert (each.last.num_cached, request.num_shared) == (shared, shared)


def test_a_prompt_that_is_only_scored_may_have_one_id_more_than_the_context(
    engine, ask, request_for
):
    nothing, long = GenerationPlan(max_tokens=0), prompts(2050, seed=3)[0]
    requests = [request_for(nothing, long[:size], scores_from=1) for size in (2048, 2049)]
    shorter, longer = ask(engine, *requests)
    assert (len(longer.scores), longer.scores[:-1]) == (2048, shorter.scores)
    with pytest.raises(ValueError, match="2050 ids and 0 more do not fit in 2048"):
        engine.submit(request_for(nothing, long, scores_from=1))


def test_prompts_as_long_as_the_context_are_answered_in_company(engine, ask, request_for):
    context, company = 2048, prompts(40, 600)
    long = prompts(context, seed=3)[0]
    plan = GenerationPlan(max_tokens=20)
    wanted = ask(engine, *(request_for(plan, each, lane=4) for each in company))
    requests = [
        request_for(GenerationPlan(max_tokens=left), long[: context - left], lane=4)
        for left in (0, 1, 2)
    ]
    found = ask(engine, *requests, *(request_for(plan, each, lane=4) for each in company))
    assert [len(each.ids) for each in found[:3]] == [0, 1, 2]
    assert {each.last.reason for each in found[:3]} == {"length"}
    assert [each.bits for each in found[3:]] == [each.bits for each in wanted]
    with pytest.raises(ValueError, match="do not fit in 2048"):
        engine.submit(request_for(GenerationPlan(max_tokens=1), long))


def test_one_for_whom_there_is_no_more_memory_ends_once(model, ask, request_for):
    asked = []

    def require_memory(tokens, pool):
        asked.append(tokens)
        if len(asked) > 1:
            raise UserError("no memory")

    engine = Engine(model, jax.sharding.get_mesh(), require_memory=require_memory)
    request = request_for(PLANS[0], *prompts(5))
    (found,) = ask(engine, request)
    assert isinstance(found.last, UserError)
    engine.close()
    assert request.events.empty()
