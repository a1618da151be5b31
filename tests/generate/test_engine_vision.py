"""Text and vision written together, under the grammar and with guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.generate.decoding import decode
from lwm.generate.engine import Session
from lwm.generate.grammar import TEXT_ONLY, FrameLimits, VisionGrammar
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.sampling import GREEDY, RepetitionPenalty, Sampler
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

TOKENS = TokenSpace(text=118, vision=9, codes=6)
GRAMMAR = VisionGrammar(tokens=TOKENS, opening=((1, 2),), tokens_per_frame=5)
PICTURE = FrameLimits.exactly(3)


def collect(bursts):
    return np.concatenate([burst.ids for burst in bursts], axis=1)


@pytest.fixture
def painter(tiny, kept):
    return lambda: kept(tiny(tokens=TOKENS))


def paint(model, mesh, given, rows, *, count=18, grammar=GRAMMAR, **options):
    """Returns ids and logprobs that are written after prompts."""
    session = Session(model, mesh, rows=len(given), slots=256)
    session.read(given)
    vision = None
    if grammar is not None:
        of_vision = {"image", "guidance"} & set(options)
        how = {name: options.pop(name) for name in of_vision}
        vision = VisionPlan(grammar=grammar, state=grammar.start(rows), **how)
    plan = GenerationPlan(max_tokens=count, vision=vision, **options)
    ids, logprobs = zip(*session.generate(plan), strict=True)
    return np.concatenate(ids, axis=1), np.concatenate(logprobs, axis=1)


def painting(count, state, **how):
    """Returns the plan of rows that go on from a state of the grammar."""
    vision = VisionPlan(grammar=GRAMMAR, state=state, **how)
    return GenerationPlan(max_tokens=count, vision=vision)


def texts(*lengths):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, length) % TOKENS.text).tolist() for length in lengths]


@jax.jit
def forward(model, tokens, packing):
    return model(tokens, packing)


def alone(model, place, mesh, given, ids):
    """Returns the logits before each written id; every row is read whole, padded after its end."""
    ends = [len(prompt) + ids.shape[1] for prompt in given]
    tokens, segments = np.zeros((2, len(given), 128), np.int32)
    for row, (prompt, end) in enumerate(zip(given, ends, strict=True)):
        tokens[row, :end] = [*prompt, *ids[row]]
        segments[row, end:] = -1
    logits = np.asarray(forward(model, *place(mesh, tokens, segments)))
    starts = [len(prompt) - 1 for prompt in given]
    return np.stack([logits[row, s : s + ids.shape[1]] for row, s in enumerate(starts)])


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "2,2,2,1"])
def test_guided_pairs_of_unequal_length_are_as_each_alone(mesh_text, painter, place):
    given, scales = texts(40, 7, 90, 3, 3, 70), [5.0, 1.0, 0.5]
    with jax.set_mesh(mesh := make_mesh(mesh_text)):
        ids, logprobs = paint(painter(), mesh, given, [PICTURE] * 6, guidance=scales)
    np.testing.assert_array_equal(ids[:3], ids[3:])
    ends = np.arange(18) % 6 == 5
    markers = [TOKENS.end_of_frame] * 2 + [TOKENS.end_of_vision]
    np.testing.assert_array_equal(ids[:, ends], [markers] * 6)
    np.testing.assert_allclose(logprobs[:, ends], 0)
    with jax.set_mesh(mesh := make_mesh()):
        logits = alone(painter(), place, mesh, given, ids)
    codes = logits[:, ~ends, TOKENS.text : TOKENS.end_of_frame]
    cond, uncond = codes[:3], codes[3:]
    guided = uncond + np.array(scales)[:, None, None] * (cond - uncond)
    drawn = ids[:, ~ends] - TOKENS.text
    np.testing.assert_array_equal(drawn[:3], guided.argmax(axis=-1))
    chances = np.asarray(jax.nn.log_softmax(jnp.asarray(codes)))
    own = np.take_along_axis(chances, drawn[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(logprobs[:, ~ends], own, atol=1e-4)


def test_guidance_of_one_is_none(mesh, painter):
    model, given = painter(), texts(12, 30, 4, 4)
    options = {"sampler": Sampler(), "seed": [3, 4, 5, 6]}
    rows = [PICTURE] * 2 + [TEXT_ONLY] * 2  # of a pair, the first counts
    guided = paint(model, mesh, given, rows, guidance=1.0, **options)
    free = paint(model, mesh, given, [PICTURE] * 4, **options)
    np.testing.assert_array_equal(guided[0], free[0][[0, 1, 0, 1]])
    np.testing.assert_array_equal(guided[1][:2], free[1][:2])
    other = paint(model, mesh, given, [PICTURE] * 4, guidance=[1.0, 9.0], **options)
    np.testing.assert_array_equal(other[0][0], free[0][0])
    assert (other[0][1] != free[0][1]).any()


def test_text_of_a_pair_is_that_of_the_row_with_the_condition(mesh, painter):
    model, given = painter(), texts(12, 30, 4, 4)
    ids, _ = paint(model, mesh, given, [TEXT_ONLY] * 4, guidance=9.0)
    plain, _ = paint(model, mesh, given, None, grammar=None)
    np.testing.assert_array_equal(ids, plain[[0, 1, 0, 1]])


def test_rows_of_text_and_of_vision_together_are_as_alone(mesh, painter):
    model, given = painter(), texts(12, 30, 9, 40)
    rows = [TEXT_ONLY, PICTURE, FrameLimits(inside=True, most=2), FrameLimits.exactly(1)]
    options = {"sampler": Sampler(), "seed": 5}
    ids, logprobs = paint(model, mesh, given, rows, count=22, **options)
    for number, row in enumerate(rows):
        same = paint(model, mesh, [given[number]] * 4, [row] * 4, count=22, **options)
        count = (ids[number] >= 0).sum()
        np.testing.assert_array_equal(ids[number, :count], same[0][0])
        np.testing.assert_allclose(logprobs[number, :count], same[1][0], atol=1e-4)
    plain, _ = paint(model, mesh, given, None, count=22, grammar=None, **options)
    np.testing.assert_array_equal(ids[0], plain[0])
    lengths = [(row >= 0).sum() for row in ids]
    assert lengths == [22, GRAMMAR.size(3), 22, GRAMMAR.size(1)]
    assert (ids[2, 12:] < TOKENS.text).all()  # text again after the image
    assert np.isfinite(logprobs).all()


def test_a_sampled_opening_begins_a_frame_and_a_read_one_does_not(mesh, painter):
    model, given = painter(), [[5, 1, 2]] * 4
    plain, _ = paint(model, mesh, given, None, grammar=None)
    opening = tuple(plain[0, 2:5].tolist())
    grammar = VisionGrammar(tokens=TOKENS, opening=(opening,), tokens_per_frame=5)
    ids, _ = paint(model, mesh, given, [FrameLimits(), TEXT_ONLY] * 2, grammar=grammar)
    np.testing.assert_array_equal(ids[0, :5], plain[0, :5])
    assert (ids[0, 5:10] >= TOKENS.text).all()
    np.testing.assert_array_equal(ids[1, :4], plain[1, :4])
    assert ids[1, 4] != plain[1, 4]
    assert (ids[1] < TOKENS.text).all()
    read, _ = paint(model, mesh, [[7, *opening]] * 4, [FrameLimits()] * 4, grammar=grammar)
    assert (read[:, 0] < TOKENS.text).all()


def test_text_and_vision_are_sampled_by_rules_of_their_own(mesh, painter):
    model, given = painter(), texts(12, 30, 4, 4)
    rows = [TEXT_ONLY, PICTURE] * 2
    greedy, _ = paint(model, mesh, given, rows)
    ids, _ = paint(model, mesh, given, rows, sampler=Sampler(), image=GREEDY)
    assert (ids[0] != greedy[0]).any()
    np.testing.assert_array_equal(ids[1], greedy[1])
    free, _ = paint(model, mesh, given, rows, sampler=Sampler())
    penalised = Sampler(rules=(RepetitionPenalty(9.0),))
    ids, _ = paint(model, mesh, given, rows, sampler=penalised)
    assert (ids[0] != free[0]).any()
    np.testing.assert_array_equal(ids[1], free[1])


def test_vision_goes_on_where_it_was_left(mesh, painter):
    model, given = painter(), texts(12, 30, 4, 4)
    rows = [FrameLimits.exactly(1), FrameLimits(inside=True)] * 2
    whole, _ = paint(model, mesh, given, rows)
    session = Session(model, mesh, rows=4, slots=256)
    session.read(given)
    state, pieces = GRAMMAR.start(rows), []
    for count in (3, 8, 7):
        pieces.append(collect(session.generate(painting(count, state))))
        state = session.state
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    np.testing.assert_array_equal(GRAMMAR.start(rows).left - state.left, [6, 18, 6, 18])


def test_no_code_ends_a_row_and_its_caller_ends_a_pair(mesh, painter):
    model, given = painter(), texts(12, 30, 4, 4)
    session = Session(model, mesh, rows=4, slots=256)
    session.read(given)
    pictures = GRAMMAR.start([PICTURE] * 4)
    plan = painting(18, pictures, guidance=2.0)
    bursts = session.generate(dataclasses.replace(plan, stop_ids=range(TOKENS.text)))
    assert (next(bursts).ids >= TOKENS.text).all()
    session.done[1] = True
    ids = collect(bursts)
    assert (ids[[1, 3]] == -1).all()
    assert (ids[[0, 2]] >= TOKENS.text).all()
    assert ids.shape == (4, 10)


def test_there_is_no_burst_of_nothing(mesh, painter):
    session = Session(painter(), mesh, rows=4, slots=256)
    session.read(texts(12, 30, 4, 4))
    picture = GRAMMAR.start([FrameLimits.exactly(1)] * 4)
    list(session.generate(painting(18, picture)))
    assert not list(session.generate(painting(18, session.state)))


def test_arguments_that_do_not_go_together_are_refused(mesh, painter):
    session = Session(painter(), mesh, rows=3, slots=256)
    session.read(texts(5, 5, 5))
    rows = [PICTURE] * 3
    with pytest.raises(ValueError, match="needs a state of 3 rows"):
        session.generate(painting(1, None))
    with pytest.raises(ValueError, match=r"state of 3 rows, not \[2\]"):
        session.generate(painting(1, GRAMMAR.start(rows[:2])))
    with pytest.raises(ValueError, match="1 scales of guidance do not pair 3 rows"):
        session.generate(painting(1, GRAMMAR.start(rows), guidance=2.0))
    with pytest.raises(ValueError, match="2 samplers or seeds for 3 rows"):
        session.generate(GenerationPlan(max_tokens=1, sampler=[GREEDY] * 2))
    with pytest.raises(ValueError, match="2 samplers or seeds for 3 rows"):
        session.generate(GenerationPlan(max_tokens=1, seed=[1, 2]))


def traces():
    """Counts the kinds of arguments that the loop has met; each costs a trace."""
    return vars(type(decode))["_cache_size"](decode)


def test_the_loop_is_traced_once_for_all_calls_alike(mesh, painter):
    """Whatever the seeds and where rows stand; no other test has two rows of this model."""
    session, before = Session(painter(), mesh, rows=2, slots=512), traces()
    for seed in (0, [1, 2]):
        session.read(texts(5, 80))
        collect(session.generate(GenerationPlan(max_tokens=9, seed=seed)))
    assert traces() == before + 1
    state = GRAMMAR.start([PICTURE] * 2)
    for count in (9, 3):
        collect(session.generate(painting(count, state)))
        state = session.state
    assert traces() == before + 2
