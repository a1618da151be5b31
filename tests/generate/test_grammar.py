"""The grammar alone: whatever is drawn under it is a stream of text and whole frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.generate.grammar import TEXT_ONLY, FrameLimits, VisionGrammar
from lwm.tokens import TokenSpace

TOKENS = TokenSpace(text=6, vision=8, codes=5)
EOF, EOV = TOKENS.end_of_frame, TOKENS.end_of_vision
OPENING = ((1, 2, 3), (2, 2), (3, 1, 1, 2))
GRAMMAR = VisionGrammar(tokens=TOKENS, opening=OPENING, tokens_per_frame=4)


@functools.partial(jax.jit, static_argnames=("rows", "steps", "of"))
def run(start, seed, *, rows, steps, of):
    """Draws from a state of the rows on, one program for all calls alike."""

    def step(state, key):
        logits = 3 * jax.random.normal(key, (rows, TOKENS.size))
        logits = jnp.where(of.legal(state), logits, -jnp.inf)
        ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        done = of.is_done(state)
        return of.advance(state, ids), (ids, done)

    return jax.lax.scan(step, start, jax.random.split(jax.random.key(seed), steps))[1]


def draw(rows, steps, *, grammar=GRAMMAR, room=None, seed=0):
    """Draws rows of ids from random logits under the grammar, and says when each row was done."""

    ids, done = run(grammar.start(rows, room=room), seed, rows=len(rows), steps=steps, of=grammar)
    return [row[~over] for row, over in zip(np.array(ids).T, np.array(done).T, strict=True)]


def parse(ids, *, inside=False, opening=OPENING):
    """Reads a stream in the plainest way: frames of each vision, and whether it ends in text."""
    visions, text, at = [0] if inside else [], [], 0
    while at < len(ids):
        if not inside:
            assert ids[at] < TOKENS.text, f"vision id {ids[at]} in text at {at}"
            text.append(int(ids[at]))
            at += 1
            if any(tuple(text[-len(run) :]) == run for run in opening):
                visions, text, inside = [*visions, 0], [], True
            continue
        codes, marker = ids[at : at + 4], ids[at + 4 : at + 5]
        assert all((codes >= TOKENS.text) & (codes < EOF)), f"no frame at {at}: {codes}"
        at += 5
        if len(marker):
            assert marker[0] in (EOF, EOV), f"{marker} ends a frame at {at}"
            visions[-1] += 1
            inside = marker[0] == EOF
    return visions, not inside


def test_a_thousand_random_streams_are_legal():
    streams = draw([FrameLimits()] * 1000, 200)
    found = [parse(stream)[0] for stream in streams]
    counts = [count for visions in found for count in visions[:-1]]
    assert all(len(stream) == 200 for stream in streams)
    assert min(counts) == 1 < max(counts)
    assert len(counts) > 1000
    used = np.unique(np.concatenate(streams))
    np.testing.assert_array_equal(used, np.arange(EOV + 1))  # all ids, the unused ones excepted


def test_so_many_frames_as_are_asked_for_and_then_the_row_is_done():
    rows = [FrameLimits.exactly(count) for count in (1, 2, 3, 8)]
    for stream, frames in zip(draw(rows, 60), rows, strict=True):
        assert parse(stream, inside=True) == ([frames.least], True)
        assert len(stream) == GRAMMAR.size(frames.least)


def test_free_counts_stay_within_bounds():
    rows = [FrameLimits(least=2, most=4, inside=True)] * 200
    counts = [count for s in draw(rows, 120) for count in parse(s, inside=True)[0][:-1]]
    assert set(counts) == {2, 3, 4}


def test_rows_with_different_rules_keep_to_their_own():
    rows = [
        TEXT_ONLY,
        FrameLimits(most=1),
        FrameLimits.exactly(2),
        FrameLimits(inside=True, most=1),
    ] * 50
    streams = draw(rows, 100)
    for stream in streams[::4]:
        assert parse(stream, opening=()) == ([], True)
        assert all(tuple(stream[i : i + len(run)]) != run for run in OPENING for i in range(100))
    assert all(set(parse(stream)[0][:-1]) <= {1} for stream in streams[1::4])
    assert all(parse(stream, inside=True) == ([2], True) for stream in streams[2::4])
    for stream in streams[3::4]:
        assert parse(stream, inside=True)[0][0] == 1
        assert len(stream) == 100
    alone = draw([FrameLimits(most=1)] * len(rows), 100)[1]
    np.testing.assert_array_equal(streams[1], alone)


@pytest.mark.parametrize("room", [5, 12, 31])
def test_no_frame_is_begun_that_has_no_room(room):
    cases = [(False, [FrameLimits(), FrameLimits(least=2), FrameLimits(least=2, most=3)] * 100)]
    if room >= 10:
        cases.append((True, [FrameLimits(inside=True, least=2)] * 50))
    for inside, rows in cases:
        for stream in draw(rows, room, room=room):
            visions, whole = parse(stream, inside=inside)
            if whole:
                assert len(stream) == room
            else:  # a row that opens what it has no room for is done
                assert visions.pop() == 0
                assert stream[-1] < TOKENS.text
            assert all(count >= 1 for count in visions)


def test_no_room_for_what_must_come_is_refused():
    with pytest.raises(ValueError, match="3 frames are 15 ids, not 14"):
        GRAMMAR.start([FrameLimits.exactly(3)], room=14)
    GRAMMAR.start([FrameLimits.exactly(3)], room=15)


def follow(ids, grammar=GRAMMAR):
    """Says after which of the ids a row is in vision."""
    state, seen = grammar.start([FrameLimits()]), []
    for token in ids:
        assert bool(grammar.legal(state)[0, token])
        state = grammar.advance(state, jnp.array([token], jnp.int32))
        seen.append(bool(grammar.in_vision(state)[0]))
    return seen


@pytest.mark.parametrize(
    "ids",
    [
        (1, 2, 3),
        (1, 1, 2, 3),
        (1, 2, 1, 2, 3),
        (5, 2, 2),
        (3, 1, 1, 2),
        (3, 3, 1, 1, 2),  # one run fails, and its end begins another
        (3, 1, 2, 3),
        (3, 1, 1, 0, 2, 1, 2, 2),
    ],
)
def test_a_sampled_opening_is_found_wherever_it_begins(ids):
    assert follow(ids) == [False] * (len(ids) - 1) + [True]


def test_what_opened_one_vision_does_not_help_to_open_the_next():
    frame = [TOKENS.text] * 4 + [EOV]
    assert follow([2, 2, *frame, 2])[-1] is False
    assert follow([2, 2, *frame, 2, 2])[-1] is True
    once = VisionGrammar(tokens=TOKENS, opening=((1, 2, 1),), tokens_per_frame=4)
    assert follow([1, 2, 1, *frame, 2, 1], grammar=once)[-1] is False


def test_only_sampled_ids_open_a_frame():
    # The prompt of a user ends in (1, 2); the grammar starts after it, and 3 alone opens nothing.
    assert follow([3]) == [False]
    assert follow([1, 2, 3]) == [False, False, True]


def test_text_only_rules_out_the_last_id_of_an_opening_and_no_other():
    state = GRAMMAR.start([TEXT_ONLY])
    for token in (3, 1, 1):
        state = GRAMMAR.advance(state, jnp.array([token], jnp.int32))
    forbidden = np.flatnonzero(~np.asarray(GRAMMAR.legal(state))[0, : TOKENS.text])
    assert forbidden.tolist() == [2]
    assert GRAMMAR.legal(GRAMMAR.start([TEXT_ONLY]))[0, : TOKENS.text].all()


def test_a_special_token_can_be_the_opening():
    grammar = VisionGrammar(tokens=TOKENS, opening=((4,),), tokens_per_frame=4)
    assert not grammar.legal(grammar.start([TEXT_ONLY]))[0, 4]
    assert follow([4], grammar=grammar) == [True]
    assert all(
        len(parse(s, opening=((4,),))) for s in draw([FrameLimits()] * 20, 60, grammar=grammar)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: FrameLimits(least=0),
        lambda: FrameLimits(least=3, most=2),
        lambda: FrameLimits(most=-1),
        lambda: FrameLimits(most=0, inside=True),
        lambda: VisionGrammar(tokens=TOKENS, opening=((1, 6),), tokens_per_frame=4),
        lambda: VisionGrammar(tokens=TOKENS, opening=((),), tokens_per_frame=4),
        lambda: VisionGrammar(tokens=TokenSpace(text=6), opening=(), tokens_per_frame=4),
        lambda: VisionGrammar(tokens=TOKENS, opening=(), tokens_per_frame=0),
    ],
)
def test_what_no_row_can_obey_is_refused(make):
    with pytest.raises(ValueError, match=r"frame|opening"):
        make()
