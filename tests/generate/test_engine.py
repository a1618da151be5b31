import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.generate.decoding import decode
from lwm.generate.engine import LONG, SHORT, Session, chunks
from lwm.generate.grammar import TEXT_ONLY, Frames, VisionGrammar
from lwm.generate.sampling import GREEDY, RepetitionPenalty, Sampler, TopK
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

TOKENS = TokenSpace(text=118, vision=9, codes=6)
GRAMMAR = VisionGrammar(tokens=TOKENS, opening=((1, 2),), tokens_per_frame=5)
PICTURE = Frames.exactly(3)
NONE = -7
"""No id, but a stop: as many of them as there are elsewhere, so that nothing is compiled anew."""


def collect(bursts):
    return np.concatenate([burst.ids for burst in bursts], axis=1)


@pytest.fixture(scope="module")
def init(init):
    """Draws each model once on each mesh."""
    drawn = {}

    def make(config):
        of = config, jax.sharding.get_mesh()
        if of not in drawn:
            drawn[of] = init(config).unstack()
        return drawn[of]

    return make


def prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, length).tolist() for length in lengths]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 256, 257, 511, 512, 513, 5000])
def test_chunks_hold_the_prompt_with_little_padding(length):
    sizes = chunks(length)
    assert set(sizes) <= {LONG, SHORT}
    assert sizes == sorted(sizes)
    assert length <= sum(sizes) < length + LONG // 2


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "2,2,2,1"])
def test_greedy_answers_are_those_of_the_original(fixtures, original, mesh_text):
    given = np.load(fixtures / "generation.npz")
    mesh = make_mesh(mesh_text)
    session = Session(original(mesh, stored="scan"), mesh, rows=3, slots=256)
    ids, mask = given["text.input_ids"], given["text.attention_mask"]
    session.read([row[seen > 0].tolist() for row, seen in zip(ids, mask, strict=True)])
    written = collect(session.generate(max_tokens=32, stop_ids=[2]))
    wanted = given["text.greedy.sequences"][:, ids.shape[1] :]
    np.testing.assert_array_equal(np.where(written < 0, 0, written), wanted)


def test_unequal_prompts_together_are_as_alone(mesh, tiny, init):
    model = init(tiny(num_heads=16))
    given = prompts(3, 70, 20)
    together = Session(model, mesh, rows=3, slots=256)
    together.read(given)
    written = collect(together.generate(max_tokens=20))
    for row, prompt in enumerate(given):
        alone = Session(model, mesh, slots=256)
        alone.read([prompt])
        np.testing.assert_array_equal(written[row], collect(alone.generate(max_tokens=20))[0])


def test_sampling_depends_on_the_seed_and_not_on_the_batch(mesh, tiny, init):
    model = init(tiny(num_heads=16))

    def sample(given, seed):
        session = Session(model, mesh, rows=len(given), slots=256)
        session.read(given)
        return collect(session.generate(max_tokens=24, sampler=Sampler(), seed=seed))

    given = prompts(5, 9, 14)
    first = sample(given, 1)
    np.testing.assert_array_equal(first, sample(given, 1))
    np.testing.assert_array_equal(first[1:2], sample(given[1:2], 1))
    assert (first != sample(given, 2)).any()


def test_generation_goes_on_where_it_was_left(mesh, tiny, init):
    model = init(tiny(num_heads=16))
    session = Session(model, mesh, slots=256)
    session.read(prompts(30))
    whole = collect(session.generate(max_tokens=30))
    other = Session(model, mesh, slots=256)
    other.read(prompts(30))
    pieces = [collect(other.generate(max_tokens=n)) for n in (5, 20, 5)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces, axis=1))


def test_a_stop_id_ends_its_row_only(mesh, tiny, init):
    session = Session(init(tiny(num_heads=16)), mesh, rows=3, slots=256)
    session.read(prompts(10, 12, 5))
    free = collect(session.generate(max_tokens=20, stop_ids=[NONE]))
    stop = int(free[0, 3])
    session.rewind(0)
    session.read(prompts(10, 12, 5))
    stopped = collect(session.generate(max_tokens=20, stop_ids=[stop]))
    end = list(free[0]).index(stop)
    np.testing.assert_array_equal(stopped[0, : end + 1], free[0, : end + 1])
    assert (stopped[0, end + 1 :] == -1).all()
    assert stop not in free[1:]
    np.testing.assert_array_equal(stopped[1:], free[1:])


def test_a_row_that_had_ended_goes_on_from_where_it_did(mesh, tiny, init):
    model, given = init(tiny(num_heads=16)), prompts(10, 12, 5)
    session = Session(model, mesh, rows=3, slots=256)
    session.read(given)
    free = collect(session.generate(max_tokens=20, stop_ids=[NONE]))
    stop = int(free[0, 2])
    end = list(free[0]).index(stop) + 1
    session.rewind(0)
    session.read(given)
    collect(session.generate(max_tokens=8, stop_ids=[stop]))
    np.testing.assert_array_equal(
        collect(session.generate(max_tokens=8, stop_ids=[NONE]))[0], free[0, end : end + 8]
    )


def traces():
    """Counts the kinds of arguments that the loop has met; each costs a trace."""
    return vars(type(decode))["_cache_size"](decode)


def test_the_loop_is_traced_once_for_all_calls_alike(mesh, painter):
    """Whatever the seeds and where rows stand; no other test has two rows of this model."""
    session, before = Session(painter(), mesh, rows=2, slots=512), traces()
    for seed in (0, [1, 2]):
        session.read(texts(5, 80))
        collect(session.generate(max_tokens=9, seed=seed))
    assert traces() == before + 1
    state = GRAMMAR.start([PICTURE] * 2)
    for count in (9, 3):
        collect(session.generate(max_tokens=count, grammar=GRAMMAR, state=state))
        state = session.state
    assert traces() == before + 2


def test_rewinding_and_reading_again_is_as_reading_once(mesh, tiny, init):
    model, (start, wrong, right) = init(tiny(num_heads=16)), prompts(40, 25, 33)
    session = Session(model, mesh, slots=256)
    session.read([start])
    session.read([wrong])
    session.rewind(SHORT)
    session.read([right])
    other = Session(model, mesh, slots=256)
    other.read([start + right])
    np.testing.assert_array_equal(
        collect(session.generate(max_tokens=16)), collect(other.generate(max_tokens=16))
    )


def test_reading_can_be_stopped_between_chunks(mesh, tiny, init):
    session = Session(init(tiny(num_heads=16)), mesh, slots=512)
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.read(prompts(200), progress=stop)
    assert seen == [(8, 200), (72, 200)]
    assert session.length == 2 * SHORT
    session.rewind(0)
    session.read(prompts(200))


def test_what_cannot_be_done_is_refused(mesh, tiny, init):
    model = init(tiny(num_heads=16))
    session = Session(model, mesh, slots=256)
    with pytest.raises(ValueError, match="read a prompt first"):
        next(session.generate(max_tokens=1))
    with pytest.raises(ValueError, match="at least one id"):
        session.read([[]])
    session.read(prompts(100))
    with pytest.raises(ValueError, match="400 more slots do not fit: 128 of 512"):
        next(session.generate(max_tokens=400))
    with pytest.raises(ValueError, match="129 slots cannot be kept: 128 are in use"):
        session.rewind(129)
    session.reserve(700)
    assert collect(session.generate(max_tokens=400)).shape == (1, 400)
    with pytest.raises(UserError, match="the mesh has sp 2"):
        Session(model, make_mesh("sp=2"), slots=256)


def test_taking_the_likeliest_of_one_is_greedy(mesh, tiny, init):
    session = Session(init(tiny(num_heads=16)), mesh, rows=3, slots=256)
    session.read(prompts(10, 12, 5))
    greedy = collect(session.generate(max_tokens=20))
    session.rewind(0)
    session.read(prompts(10, 12, 5))
    top1 = collect(session.generate(max_tokens=20, sampler=Sampler(rules=(TopK(1),)), seed=5))
    np.testing.assert_array_equal(top1, greedy)


def test_each_row_has_its_own_seed(mesh, tiny, init):
    model, given = init(tiny(num_heads=16)), prompts(6)

    def sample(rows, seed):
        session = Session(model, mesh, rows=rows, slots=256)
        session.read(given * rows)
        return collect(session.generate(max_tokens=16, sampler=Sampler(), seed=seed))

    several = sample(3, [4, 9, 4])
    np.testing.assert_array_equal(several[0], several[2])
    np.testing.assert_array_equal(several[:2], np.concatenate([sample(1, 4), sample(1, 9)]))
    assert (several[0] != several[1]).any()


def test_logprobs_are_those_of_the_forward_pass(mesh, tiny, init, place):
    model, given = init(tiny(num_heads=16)), prompts(12)
    session = Session(model, mesh, slots=256)
    session.read(given)
    bursts = list(session.generate(max_tokens=20, sampler=Sampler(), seed=3))
    ids = np.concatenate([burst.ids for burst in bursts], axis=1)
    logprobs = np.concatenate([burst.logprobs for burst in bursts], axis=1)
    whole = np.concatenate([given, ids], axis=1)
    chances = jax.nn.log_softmax(forward(model, *place(mesh, whole)))[:, 11:-1]
    wanted = np.take_along_axis(np.asarray(chances), ids[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(logprobs, wanted, atol=1e-4)


@pytest.fixture
def painter(tiny, init):
    return lambda: init(tiny(tokens=TOKENS))


def paint(model, mesh, given, rows, *, count=18, grammar=GRAMMAR, **options):
    """Returns ids and logprobs that are written after prompts."""
    session = Session(model, mesh, rows=len(given), slots=256)
    session.read(given)
    state = None if grammar is None else grammar.start(rows)
    bursts = session.generate(max_tokens=count, grammar=grammar, state=state, **options)
    ids, logprobs = zip(*bursts, strict=True)
    return np.concatenate(ids, axis=1), np.concatenate(logprobs, axis=1)


def texts(*lengths, seed=0):
    return [[token % TOKENS.text for token in prompt] for prompt in prompts(*lengths, seed=seed)]


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
    rows = [TEXT_ONLY, PICTURE, Frames(inside=True, most=2), Frames.exactly(1)]
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
    ids, _ = paint(model, mesh, given, [Frames(), TEXT_ONLY] * 2, grammar=grammar)
    np.testing.assert_array_equal(ids[0, :5], plain[0, :5])
    assert (ids[0, 5:10] >= TOKENS.text).all()
    np.testing.assert_array_equal(ids[1, :4], plain[1, :4])
    assert ids[1, 4] != plain[1, 4]
    assert (ids[1] < TOKENS.text).all()
    read, _ = paint(model, mesh, [[7, *opening]] * 4, [Frames()] * 4, grammar=grammar)
    assert (read[:, 0] < TOKENS.text).all()


def test_text_and_vision_are_sampled_by_rules_of_their_own(mesh, painter):
    model, given = painter(), texts(12, 30, 4, 4)
    rows = [TEXT_ONLY, PICTURE] * 2
    greedy, _ = paint(model, mesh, given, rows)
    ids, _ = paint(model, mesh, given, rows, sampler=Sampler(), image_sampler=GREEDY)
    assert (ids[0] != greedy[0]).any()
    np.testing.assert_array_equal(ids[1], greedy[1])
    free, _ = paint(model, mesh, given, rows, sampler=Sampler())
    penalised = Sampler(rules=(RepetitionPenalty(9.0),))
    ids, _ = paint(model, mesh, given, rows, sampler=penalised)
    assert (ids[0] != free[0]).any()
    np.testing.assert_array_equal(ids[1], free[1])


def test_vision_goes_on_where_it_was_left(mesh, painter):
    model, given = painter(), texts(12, 30, 4, 4)
    rows = [Frames.exactly(1), Frames(inside=True)] * 2
    whole, _ = paint(model, mesh, given, rows)
    session = Session(model, mesh, rows=4, slots=256)
    session.read(given)
    state, pieces = GRAMMAR.start(rows), []
    for count in (3, 8, 7):
        bursts = session.generate(max_tokens=count, grammar=GRAMMAR, state=state)
        pieces.append(collect(bursts))
        state = session.state
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    np.testing.assert_array_equal(GRAMMAR.start(rows).left - state.left, [6, 18, 6, 18])


def test_no_code_ends_a_row_and_its_caller_ends_a_pair(mesh, painter):
    model, given = painter(), texts(12, 30, 4, 4)
    session = Session(model, mesh, rows=4, slots=256)
    session.read(given)
    bursts = session.generate(
        max_tokens=18,
        grammar=GRAMMAR,
        state=GRAMMAR.start([PICTURE] * 4),
        guidance=2.0,
        stop_ids=range(TOKENS.text),
    )
    assert (next(bursts).ids >= TOKENS.text).all()
    session.done[1] = True
    ids = collect(bursts)
    assert (ids[[1, 3]] == -1).all()
    assert (ids[[0, 2]] >= TOKENS.text).all()
    assert ids.shape == (4, 10)


def test_there_is_no_burst_of_nothing(mesh, painter):
    session = Session(painter(), mesh, rows=4, slots=256)
    session.read(texts(12, 30, 4, 4))
    picture = GRAMMAR.start([Frames.exactly(1)] * 4)
    list(session.generate(max_tokens=18, grammar=GRAMMAR, state=picture))
    assert not list(session.generate(max_tokens=18, grammar=GRAMMAR, state=session.state))


def test_arguments_that_do_not_go_together_are_refused(mesh, painter):
    session = Session(painter(), mesh, rows=3, slots=256)
    session.read(texts(5, 5, 5))
    rows = [PICTURE] * 3
    with pytest.raises(ValueError, match="needs a state of 3 rows"):
        session.generate(max_tokens=1, grammar=GRAMMAR)
    with pytest.raises(ValueError, match=r"state of 3 rows, not \[2\]"):
        session.generate(max_tokens=1, grammar=GRAMMAR, state=GRAMMAR.start(rows[:2]))
    with pytest.raises(ValueError, match="under a grammar only"):
        session.generate(max_tokens=1, guidance=2.0)
    with pytest.raises(ValueError, match="1 scales of guidance do not pair 3 rows"):
        session.generate(max_tokens=1, grammar=GRAMMAR, state=GRAMMAR.start(rows), guidance=2.0)
