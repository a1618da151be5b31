"""Ids and logits that the original recorded: images, a video, chats about images, text.

The original lets every vision id follow every other, and puts end-of-frame after each 256: the
tests' own grammar does so too. What it drew at random is checked with the recorded ids before:
if each draw is the recorded one, so is the whole.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.generate.decoding import Guidance, guide
from lwm.generate.engine import Engine
from lwm.generate.grammar import FrameLimits, VisionGrammar
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.sampling import GREEDY, Temperature, TopK, TopP
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

TOKENS = TokenSpace(text=512, vision=8448, codes=8192)
CODES = 256


@dataclasses.dataclass(frozen=True)
class Unruly:
    """Any vision id, and end-of-frame after each 256, whatever these were."""

    def plain(self):
        return np.zeros(1, np.int32)

    def in_vision(self, state):
        return jnp.ones(state.shape, bool)

    def in_video(self, state):
        return state > CODES

    def legal(self, state):
        ids = jnp.arange(TOKENS.size)[None, :]
        ends = (state % (CODES + 1) == CODES)[:, None]
        return jnp.where(ends, ids == TOKENS.end_of_frame, ids >= TOKENS.text)

    def advance(self, state, ids):
        return state + 1

    def is_done(self, state):
        return jnp.zeros(state.shape, bool)

    def is_complete(self, state):
        return np.zeros(state.shape, bool)


@jax.jit
def _whole(model, tokens, packing):
    return model(tokens, packing)


@pytest.fixture(scope="module")
def given(fixtures):
    with np.load(fixtures / "generation.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def painter(original):
    """The original's model with vision, on one device in use."""
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        yield mesh, original(mesh, name="vision_full", stored="scan")


@pytest.fixture(scope="module")
def paint(painter, ask, request_for):
    """Writes ids after prompts, of which the second half may guide the first."""
    mesh, model = painter
    engines = {}

    def make(runs, count, *, grammar=None, state=None, guidance=None, stop_ids=()):
        if grammar not in engines:
            engines[grammar] = Engine(model, mesh, grammar=grammar, pool_tokens=5120)
        half = len(runs) // 2
        rows = (
            [(run,) for run in runs]
            if guidance is None
            else [*zip(runs[:half], runs[half:], strict=True)]
        )
        vision = None
        if grammar is not None:
            state = grammar.plain() if state is None else state
            vision = VisionPlan(state=state, guidance=1.0 if guidance is None else guidance)
        plan = GenerationPlan(max_tokens=count, stop_ids=stop_ids, sampler=GREEDY, vision=vision)
        found = ask(engines[grammar], *(request_for(plan, *each, lane=4) for each in rows))
        return np.array([each.ids + [-1] * (count - len(each.ids)) for each in found])

    return make


def prompts(given, kind="vision"):
    """The prompts without their padding; the second half has no condition."""
    ids = given[f"{kind}.input_ids"] + TOKENS.text * given.get(f"{kind}.vision_masks", 0)
    mask = given[f"{kind}.attention_mask"]
    return [row[seen > 0].tolist() for row, seen in zip(ids, mask, strict=True)]


def forward(painter, place, runs, written):
    """Returns the logits before each written id, in one pass over whole rows."""
    mesh, model = painter
    rows = [[*run, *ids] for run, ids in zip(runs, written.tolist(), strict=True)]
    width = -(-max(map(len, rows)) // 64) * 64
    tokens = np.zeros((len(rows), width), np.int32)
    segments = np.full_like(tokens, -1)
    positions = np.zeros_like(tokens)
    for number, row in enumerate(rows):
        tokens[number, width - len(row) :] = row
        segments[number, width - len(row) :] = 0
        positions[number, width - len(row) :] = np.arange(len(row))
    count = written.shape[1]
    logits = _whole(model, *place(mesh, tokens, segments, positions))
    return np.asarray(logits)[:, width - count - 1 : -1]


def guided(logits, scale):
    """Returns the vision half of the logits of the first rows, guided by the others."""
    rows = len(logits)
    pairs = Guidance.none(rows)
    pairs.away_from[: rows // 2], pairs.image[: rows // 2] = range(rows // 2, rows), scale
    vision = jnp.asarray(logits[:, :, TOKENS.text :])
    mixed = jax.vmap(guide, (1, None, None), 1)(vision, pairs, jnp.asarray(pairs.image))
    return np.asarray(mixed)[: rows // 2]


def draws(logits, rules, seed):
    """Draws as the original does: one key for a step of the whole batch, split off one by one."""

    def step(key, logits):
        key, following = jax.random.split(key)
        for rule in rules:
            logits = rule(logits, seen=jnp.zeros(logits.shape, bool))
        return following, jax.random.categorical(key, logits)

    with jax.threefry_partitionable(False):
        key = jax.random.PRNGKey(seed)
        return np.asarray(
            jax.jit(lambda x: jax.lax.scan(step, key, x)[1])(np.swapaxes(logits, 0, 1))
        ).T


@pytest.mark.parametrize(("mode", "scale"), [("cfg5_topk1", 5.0), ("cfg1_topk1", 1.0)])
def test_images_are_those_of_the_original(given, paint, mode, scale):
    written = paint(prompts(given), 257, grammar=Unruly(), guidance=scale)
    np.testing.assert_array_equal(written - TOKENS.text, given[f"vision.{mode}.tokens"])


def test_without_guidance_an_image_is_as_with_scale_one(given, paint):
    written = paint(prompts(given)[:2], 257, grammar=Unruly())
    np.testing.assert_array_equal(written - TOKENS.text, given["vision.cfg1_topk1.tokens"])


def test_a_video_goes_on_from_its_first_frame_as_in_the_original(given, paint):
    first = given["vision.cfg5_topk1.tokens"] + TOKENS.text
    runs = [[*run, *first[row % 2].tolist()] for row, run in enumerate(prompts(given))]
    written = paint(runs, 514, grammar=Unruly(), guidance=1.0)
    np.testing.assert_array_equal(written - TOKENS.text, given["video.cfg1_topk1.tokens"])


def test_guided_logits_are_those_of_the_original(given, painter, place):
    written = np.tile(given["vision.cfg5_topk1.tokens"] + TOKENS.text, (2, 1))[:, :3]
    found = guided(forward(painter, place, prompts(given), written), 5.0)
    np.testing.assert_allclose(found, given["vision.cfg5.first_logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "scale", "rules"),
    [
        ("cfg5_topk8192", 5.0, (TopK(8192),)),
        ("cfg2_topk100_t0.7", 2.0, (Temperature(0.7), TopK(100))),
    ],
)
def test_sampled_images_are_those_of_the_original(given, painter, place, mode, scale, rules):
    wanted = given[f"vision.{mode}.tokens"]
    written = np.tile(wanted + TOKENS.text, (2, 1))
    logits = guided(forward(painter, place, prompts(given), written), scale)
    drawn = draws(logits, rules, seed=7)
    np.testing.assert_array_equal(drawn[:, :CODES], wanted[:, :CODES])


def test_chats_about_images_are_those_of_the_original(given, painter, paint, place):
    wanted = given["chat.greedy.new_tokens"]
    written = paint(prompts(given, "chat"), 32, stop_ids=[2])
    np.testing.assert_array_equal(np.where(written < 0, 0, written), wanted)
    # Transformers keeps the 50 likeliest where nothing else is said.
    sampled = given["chat.sample_t0.2.new_tokens"]
    logits = forward(painter, place, prompts(given, "chat"), sampled)[:, :, : TOKENS.text]
    drawn = draws(logits, (Temperature(0.2), TopK(50)), seed=42)
    np.testing.assert_array_equal(*until_stop(drawn, sampled))


@pytest.mark.parametrize(
    ("mode", "rules"),
    [
        ("t0.8", (Temperature(0.8), TopK(50))),
        ("t1_topk20", (TopK(20),)),
        ("t1_topp0.9", (TopP(0.9),)),
    ],
)
def test_sampled_texts_are_those_of_the_original(given, original, place, mode, rules):
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        model = mesh, original(mesh, stored="scan")
        wanted = given[f"text.sample_{mode}.sequences"][:, 64:]
        logits = forward(model, place, prompts(given, "text"), wanted)
        drawn = draws(logits, rules, seed=42)
    np.testing.assert_array_equal(*until_stop(drawn, wanted))


def until_stop(drawn, wanted):
    """Puts the original's padding where a row has ended; the end itself must be drawn too."""
    ended = np.cumsum(wanted == 2, axis=1) - (wanted == 2) > 0
    return np.where(ended, 0, drawn), wanted


def test_our_grammar_departs_from_the_original_only_where_it_is_illegal(
    given, painter, paint, place
):
    grammar = VisionGrammar(tokens=TOKENS, opening=((1, 2),), tokens_per_frame=CODES)
    state = grammar.start([FrameLimits.exactly(1)], room=257)
    written = paint(prompts(given), 257, grammar=grammar, state=state, guidance=5.0)
    assert (written[:, :CODES] < TOKENS.end_of_frame).all()
    assert (written[:, CODES] == TOKENS.end_of_vision).all()
    for row, theirs in zip(written - TOKENS.text, given["vision.cfg5_topk1.tokens"], strict=False):
        first = int(np.argmax(theirs >= TOKENS.codes))
        assert 0 < first < CODES
        np.testing.assert_array_equal(row[:first], theirs[:first])
        assert row[first] != theirs[first]
    logits = forward(painter, place, prompts(given), np.tile(written, (2, 1)))
    likeliest = guided(logits, 5.0)[:, :CODES, : TOKENS.codes].argmax(axis=-1)
    np.testing.assert_array_equal(written[:, :CODES] - TOKENS.text, likeliest)
