"""Text and vision written together, under the grammar and with guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.generate.decoding import burst
from lwm.generate.engine import Engine
from lwm.generate.grammar import PLAIN, TEXT_ONLY, FrameLimits, VisionGrammar
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.sampling import GREEDY, RepetitionPenalty, Sampler
from lwm.sampling_params import TOPS
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

TOKENS = TokenSpace(text=118, vision=9, codes=6)
GRAMMAR = VisionGrammar(tokens=TOKENS, opening=((1, 2),), tokens_per_frame=5)
PICTURE = FrameLimits.exactly(3)
LANE = 8
"""Slots, two for each group of devices where there are four."""


@pytest.fixture(scope="module")
def painter(tiny, kept):
    return lambda: kept(tiny(num_layers=1, tokens=TOKENS))


@pytest.fixture(scope="module")
def engines(painter):
    """Makes an engine for each grammar on each mesh in use."""
    made = {}

    def make(grammar):
        of = grammar, (mesh := jax.sharding.get_mesh())
        if of not in made:
            made[of] = Engine(painter(), mesh, grammar=grammar, pool_tokens=2560)
        return made[of]

    return make


@pytest.fixture
def paint(engines, ask, request_for):
    """Writes after prompts; where there are scales, the last of them guide the first."""

    def make(given, rows, *, count=18, grammar=GRAMMAR, guidance=None, seed=0, **options):
        scales = [] if guidance is None else guidance
        pairs = len(scales)
        alone = [(prompt,) for prompt in given[2 * pairs :]]
        runs = [*zip(given[:pairs], given[pairs : 2 * pairs], strict=True), *alone]
        seeds = [seed] * len(runs) if isinstance(seed, int) else seed
        image = options.pop("image", None)

        def plan(number):
            vision = None
            if rows is not None:
                scale = scales[number] if number < pairs else 1.0
                state = grammar.start([rows[number]])
                vision = VisionPlan(state=state, image=image, guidance=scale)
            return GenerationPlan(max_tokens=count, seed=seeds[number], vision=vision, **options)

        requests = [request_for(plan(n), *run, lane=LANE) for n, run in enumerate(runs)]
        return ask(engines(grammar), *requests)

    return make


def texts(*lengths):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, length) % TOKENS.text).tolist() for length in lengths]


@jax.jit
def forward(model, tokens, packing):
    return model(tokens, packing)


def alone(model, place, mesh, given, ids):
    """Returns the logits before each written id; every row is read whole, padded after its end."""
    ends = [len(prompt) + len(row) for prompt, row in zip(given, ids, strict=True)]
    tokens, segments = np.zeros((2, len(given), 128), np.int32)
    for row, (prompt, end) in enumerate(zip(given, ends, strict=True)):
        tokens[row, :end] = [*prompt, *ids[row]]
        segments[row, end:] = -1
    logits = np.asarray(forward(model, *place(mesh, tokens, segments)))
    starts = [len(prompt) - 1 for prompt in given]
    return np.stack([logits[row, s : s + len(ids[row])] for row, s in enumerate(starts)])


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "2,1,2,2"])
def test_guided_pairs_of_unequal_length_are_as_each_alone(mesh_text, painter, paint, place):
    given, scales = texts(40, 7, 90, 3, 3, 70), [5.0, 1.0, 0.5]
    with jax.set_mesh(make_mesh(mesh_text)):
        found = paint(given, [PICTURE] * 3, guidance=scales)
    ids = np.array([each.ids for each in found])
    logprobs = np.array([each.logprobs for each in found])
    assert {each.last.reason for each in found} == {"stop"}
    ends = np.arange(18) % 6 == 5
    markers = [TOKENS.end_of_frame] * 2 + [TOKENS.end_of_vision]
    np.testing.assert_array_equal(ids[:, ends], [markers] * 3)
    np.testing.assert_allclose(logprobs[:, ends], 0)
    with jax.set_mesh(mesh := make_mesh()):
        logits = alone(painter(), place, mesh, given, [*ids, *ids])
    codes = logits[:, ~ends, TOKENS.text : TOKENS.end_of_frame]
    cond, uncond = codes[:3], codes[3:]
    guided = uncond + np.array(scales)[:, None, None] * (cond - uncond)
    drawn = ids[:, ~ends] - TOKENS.text
    np.testing.assert_array_equal(drawn, guided.argmax(axis=-1))
    chances = np.asarray(jax.nn.log_softmax(jnp.asarray(cond)))
    own = np.take_along_axis(chances, drawn[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(logprobs[:, ~ends], own, atol=1e-4)


def test_guidance_of_one_is_none(mesh, paint):
    given = texts(12, 30, 4, 4)
    options = {"sampler": Sampler(), "seed": [3, 4]}
    guided = paint(given, [PICTURE] * 2, guidance=[1.0, 1.0], **options)
    free = paint(given[:2], [PICTURE] * 2, **options)
    assert [each.bits for each in guided] == [each.bits for each in free]
    other = paint(given, [PICTURE] * 2, guidance=[1.0, 9.0], **options)
    assert other[0].bits == free[0].bits
    assert other[1].ids != free[1].ids


def test_text_of_a_pair_is_that_of_the_row_with_the_condition(mesh, paint):
    given = texts(12, 30, 4, 4)
    found = paint(given, [TEXT_ONLY] * 2, guidance=[9.0, 9.0])
    plain = paint(given[:2], None, grammar=None)
    assert [each.ids for each in found] == [each.ids for each in plain]


ROWS = [TEXT_ONLY, PICTURE, FrameLimits(inside=True, most=2), FrameLimits.exactly(1)]


def test_rows_of_text_and_of_vision_together_are_as_alone(mesh, paint):
    given, options = texts(12, 30, 9, 40), {"sampler": Sampler(), "seed": 5, "count": 22}
    found = paint(given, ROWS, **options)
    for number, row in enumerate(ROWS):
        assert paint([given[number]], [row], **options)[0].bits == found[number].bits
        same = paint([given[number]] * 4, [row] * 4, **options)
        assert [each.bits for each in same] == [found[number].bits] * 4
    (plain,) = paint(given[:1], None, grammar=None, **options)
    assert found[0].ids == plain.ids
    (plain,) = paint(given[:1], None, **options)
    assert found[0].ids == plain.ids, "without a plan of vision, a row writes text"
    lengths = [len(each.ids) for each in found]
    assert lengths == [22, GRAMMAR.size(3), 22, GRAMMAR.size(1)]
    assert [each.last.reason for each in found] == ["length", "stop", "length", "stop"]
    assert max(found[2].ids[12:]) < TOKENS.text  # text again after the image
    assert all(np.isfinite(each.logprobs).all() for each in found)
    tops = paint(given, ROWS, **options, top_logprobs=TOPS)
    assert [each.bits for each in tops] == [each.bits for each in found]
    for each in tops:
        for token, logprob, top in zip(each.ids, each.logprobs, each.tops, strict=True):
            assert dict(top).get(token, logprob) == logprob
            kinds = range(TOKENS.text), range(TOKENS.text, TOKENS.end_of_frame)
            markers = range(TOKENS.end_of_frame, TOKENS.size)
            kind = next(kind for kind in (*kinds, markers) if token in kind)
            assert all(one in kind for one, _ in top)
            assert kind == markers or len(top) == min(TOPS, len(kind))


def test_pairs_and_rows_come_and_go_and_keep_their_bits(mesh, engines, ask, request_for):
    """More than there are slots, in another order, after and beside other guidance."""
    engine = engines(GRAMMAR)

    def requests():
        made = []
        for number, row in enumerate([*ROWS, PICTURE, PICTURE, *ROWS]):
            vision = VisionPlan(state=GRAMMAR.start([row]), guidance=1.0 + number)
            plan = GenerationPlan(max_tokens=22, sampler=Sampler(), seed=number, vision=vision)
            runs = texts(12 + number, 3)[: 1 + number % 2]
            made.append(request_for(plan, *runs, lane=LANE))
        return made

    together = ask(engine, *requests())
    backwards = ask(engine, *reversed(requests()))[::-1]
    alone = [ask(engine, request)[0] for request in requests()]
    assert [each.bits for each in together] == [each.bits for each in alone]
    assert [each.bits for each in backwards] == [each.bits for each in alone]


def test_a_sampled_opening_begins_a_frame_and_a_read_one_does_not(mesh, paint):
    given = [[5, 1, 2]]
    (plain,) = paint(given, None, grammar=None)
    opening = tuple(plain.ids[2:5])
    grammar = VisionGrammar(tokens=TOKENS, opening=(opening,), tokens_per_frame=5)
    free, text, unruled = paint(given * 3, [FrameLimits(), TEXT_ONLY, PLAIN], grammar=grammar)
    assert free.ids[:5] == plain.ids[:5]
    assert min(free.ids[5:10]) >= TOKENS.text
    assert text.ids[:4] == plain.ids[:4]
    assert text.ids[4] != plain.ids[4]
    assert max(text.ids) < TOKENS.text
    assert unruled.ids == plain.ids
    (read,) = paint([[7, *opening]], [FrameLimits()], grammar=grammar)
    assert read.ids[0] < TOKENS.text


def test_text_and_vision_are_sampled_by_rules_of_their_own(mesh, paint):
    given, rows = texts(12, 30), [TEXT_ONLY, PICTURE]
    greedy = paint(given, rows)
    mixed = paint(given, rows, sampler=Sampler(), image=GREEDY)
    assert mixed[0].ids != greedy[0].ids
    assert mixed[1].bits == greedy[1].bits
    free = paint(given, rows, sampler=Sampler())
    penalised = paint(given, rows, sampler=Sampler(rules=(RepetitionPenalty(9.0),)))
    assert penalised[0].ids != free[0].ids
    assert penalised[1].bits == free[1].bits


def test_no_code_ends_a_row(mesh, paint):
    found = paint(texts(12, 30, 4, 4), [PICTURE] * 2, guidance=[2.0, 2.0], stop_ids=range(8))
    assert [len(each.ids) for each in found] == [18, 18]
    assert min(min(each.ids) for each in found) >= TOKENS.text


def test_a_pair_ends_together(mesh, engines, ask, request_for):
    engine, given = engines(GRAMMAR), texts(12, 30)
    vision = VisionPlan(state=GRAMMAR.start([PICTURE]), guidance=2.0)
    request = request_for(GenerationPlan(max_tokens=18, vision=vision), *given, lane=LANE)
    events = engine.stream(request)
    while not getattr(next(events), "ids", None):
        pass
    events.close()
    plain = request_for(GenerationPlan(max_tokens=3), given[0], lane=LANE)
    assert len(ask(engine, plain)[0].ids) == 3
    engine.run(engine._runner.check)
    assert engine._runner.is_idle


def traces():
    """Counts the kinds of arguments that the loop has met; each costs a trace."""
    return vars(type(burst))["_cache_size"](burst)


def test_the_loop_is_traced_once_for_all_calls_alike(mesh, engines, ask, request_for):
    """Whatever the seeds, the guidance and the size of frames; no other test has two slots."""
    engine, before = engines(GRAMMAR), traces()
    for number, size in enumerate((5, 7, 3)):
        grammar = VisionGrammar(tokens=TOKENS, opening=((1, 2),), tokens_per_frame=size)
        state = grammar.start([FrameLimits.exactly(2)])
        for vision in (None, VisionPlan(state=state, guidance=1.0 + number)):
            plan = GenerationPlan(max_tokens=16, seed=number, vision=vision)
            runs = texts(5 + number, 80)[: 1 if vision is None else 2]
            (found,) = ask(engine, request_for(plan, *runs, lane=2))
            assert len(found.ids) == 16 if vision is None else 2 * (size + 1)
    assert traces() == before + 1
