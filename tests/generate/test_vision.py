"""Pictures drawn from words, and conversations that draw: a small model and a small VQGAN."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from lwm.generate.chat import Conversation
from lwm.generate.engine import Engine
from lwm.generate.output import Frame, joined
from lwm.generate.vision import DrawRequest, generate_frames, generate_visions
from lwm.sampling_params import FrameSampling, SamplingParams, VisionSampling
from lwm.sharding import make_mesh
from lwm.tokenizer.message import Message, Vision

PLAIN = FrameSampling(guidance=1.0)
CHAT = VisionSampling(image=PLAIN, video=PLAIN)
CODES, SIZE, SIDE = 16, 16, 16
"""Codes of the codebook, codes of a frame, and its pixels along a side."""
OPENING = "<vision>"
FREE = FrameSampling(guidance=1.0)
GREEDY = FrameSampling(guidance=1.0, temperature=0.0)


def same(one, other):
    return one.codes.tolist() == other.codes.tolist()


def require_alike(one, other):
    """Frames decoded together or alone are the same but for rounding."""
    np.testing.assert_allclose(one.astype(int), other.astype(int), rtol=0, atol=1)


def drawn(drawer, *, image=FREE, video=FREE, **options):
    """Draws one picture by these rules."""
    (found,) = drawer.draw("a cat", sampling=VisionSampling(image=image, video=video), **options)
    return found


def test_frames_asked_for_are_frames_got(drawer):
    for frames, kind in ((1, "image"), (3, "video")):
        for found in drawer.draw("a cat", frames=frames, n=2):
            assert (found.kind, found.codes.shape) == (kind, (frames, SIZE))
            assert 0 <= found.codes.min() <= found.codes.max() < CODES
            require_alike(found.pixels, drawer.vision.decode(found.codes))
    one = generate_visions(drawer, DrawRequest(prompts=("a",), kind="video"))
    assert one[0].is_video, "a video may be of one frame"
    assert generate_visions(drawer, DrawRequest(prompts=())) == []


def test_frames_come_one_after_the_other(drawer):
    told = []
    request = DrawRequest(prompts=("a cat", "a dog"), kind="video", frames=3, sampling=CHAT)
    found = generate_frames(
        drawer, request, progress=lambda done, total: told.append((done, total))
    )
    places = [(row, frame.number, frame.is_last) for row, frame in found]
    assert sorted(places) == [(row, n, n == 2) for row in (0, 1) for n in range(3)]
    for each in (0, 1):
        assert [number for row, number, _ in places if row == each] == [0, 1, 2]
    assert told == sorted(told)
    assert told[-1] == (3 * (SIZE + 1), 3 * (SIZE + 1))


def test_a_picture_depends_on_its_seed_and_not_on_those_beside_it(drawer):
    together = drawer.draw("a cat", frames=2, n=3, seed=4)
    for row, found in enumerate(together):
        assert same(found, drawer.draw("a cat", frames=2, seed=4 + row)[0])
    assert not same(together[0], together[1])
    others = generate_visions(
        drawer, DrawRequest(prompts=("a dog", "a cat"), kind="video", frames=2, seed=3)
    )
    assert same(others[1], together[0])
    assert not same(others[0], drawer.draw("a cat", frames=2, seed=3)[0])


def test_a_picture_is_the_same_on_every_mesh(drawer, open_painter):
    with jax.set_mesh(mesh := make_mesh("2,1,2,2")):
        model = open_painter(mesh)
    pictures = model.draw("a cat", frames=2, n=3)
    answer = model.chat(["What?", pictures[0]], max_tokens=24)
    wanted = drawer.draw("a cat", frames=2, n=3)
    for one, other in zip(wanted, pictures, strict=True):
        assert same(one, other)
    assert answer == drawer.chat(["What?", wanted[0]], max_tokens=24)


@pytest.fixture
def rows(monkeypatch):
    """Notes how many rows are written for each call."""
    noted, gather = [], Engine.gather

    def note(self, requests):
        noted.append(sum(len(request.prompts) for request in requests))
        return gather(self, requests)

    monkeypatch.setattr(Engine, "gather", note)
    return noted


def test_guidance_of_one_needs_no_rows_and_is_no_guidance(drawer, rows):
    alone = drawn(drawer, frames=2)
    paired = drawn(drawer, frames=2, video=FrameSampling(guidance=3.0))
    guided = drawn(drawer, frames=2, image=FrameSampling(guidance=3.0))
    assert rows == [1, 2, 2]
    first = Vision(codes=alone.codes[:1], is_video=False)
    drawn(drawer, frames=2, image=FrameSampling(guidance=3.0), first=first)
    drawn(drawer, frames=1, video=FrameSampling(guidance=3.0))
    assert rows[3:] == [1, 1], "and none for frames that are not drawn"
    assert alone.codes[0].tolist() == paired.codes[0].tolist() != guided.codes[0].tolist()
    assert alone.codes[1].tolist() != paired.codes[1].tolist()


def test_guidance_of_zero_draws_as_if_nothing_were_asked(drawer):
    def both(guidance):
        rules = VisionSampling(image=FrameSampling(guidance=guidance, temperature=0.0))
        prompts = "a cat", "the sea at night"
        return generate_visions(drawer, DrawRequest(prompts=prompts, sampling=rules))

    assert same(*both(0.0))
    assert not same(*both(1.0))


def test_frames_that_are_given_are_kept_and_count(drawer):
    whole = drawn(drawer, frames=3, image=GREEDY, video=GREEDY)
    for count in (1, 2):
        first = Vision(codes=whole.codes[:count], is_video=count > 1)
        found = drawn(drawer, frames=3, image=FREE, video=GREEDY, first=first)
        assert same(found, whole)
        require_alike(found.pixels, whole.pixels)
    assert numbers_of(drawer, first) == [(2, False), (3, True)]
    known = dataclasses.replace(first, pixels=np.full((2, SIDE, SIDE, 3), 7, np.uint8))
    found = drawn(drawer, frames=3, video=GREEDY, first=known)
    assert (found.pixels[:2] == 7).all(), "what people gave is shown as they gave it"


def numbers_of(drawer, first):
    request = DrawRequest(prompts=("a",), kind="video", frames=4, first=(first,), sampling=CHAT)
    return [(frame.number, frame.is_last) for _, frame in generate_frames(drawer, request)]


def test_the_first_frame_may_be_drawn_as_an_image(drawer):
    """As if it were drawn alone, and the video went on from it."""
    told, frames = [], []
    request = DrawRequest(
        prompts=("a cat", "a dog"), kind="video", frames=3, first_as_image=True, sampling=CHAT
    )
    for row, frame in generate_frames(drawer, request, progress=lambda *n: told.append(n)):
        frames.append((row, frame.number, frame.is_last))
    assert sorted(frames) == [(row, n, n == 2) for row in (0, 1) for n in range(3)]
    assert told == sorted(told)
    assert told[-1] == (3 * (SIZE + 1), 3 * (SIZE + 1))
    whole = generate_visions(drawer, request)
    images = generate_visions(drawer, DrawRequest(prompts=request.prompts, sampling=CHAT))
    after = dataclasses.replace(request, first=tuple(images), first_as_image=False)
    for one, other in zip(whole, generate_visions(drawer, after), strict=True):
        assert same(one, other)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_what_is_said_of_video_holds_after_the_first_frame_only(drawer):
    videos = [drawn(drawer, frames=2, image=GREEDY, seed=seed) for seed in range(3)]
    assert len({tuple(each.codes[0]) for each in videos}) == 1
    assert len({tuple(each.codes[1]) for each in videos}) == 3
    images = [drawn(drawer, frames=2, image=FREE, video=GREEDY, seed=seed) for seed in range(3)]
    assert len({tuple(each.codes[0]) for each in images}) == 3
    assert same(images[0], drawn(drawer, frames=2, video=FrameSampling(guidance=1.0, top_k=1)))


DRAWING = SamplingParams(max_tokens=80, temperature=1.0)


def pieces_of(conversation, question, params=DRAWING):
    read = []
    pieces = list(
        conversation.ask(question, params=params, progress=lambda _, total: read.append(total))
    )
    return pieces, max(read, default=0)


def frames_of(pieces):
    return [piece for piece in pieces if isinstance(piece, Frame)]


def test_a_conversation_answers_with_text_and_pictures(drawer):
    for seed in range(3):
        params = dataclasses.replace(DRAWING, seed=seed)
        conversation = Conversation(drawer, sampling=CHAT)
        pieces, _ = pieces_of(conversation, "Hi", params)
        answer = conversation.messages[-1]
        visions = answer.visions
        codes = [frame.codes.tolist() for frame in frames_of(pieces)]
        assert codes == [frame.tolist() for each in visions for frame in each.codes]
        assert codes
        ends = [frame.number for frame in frames_of(pieces) if frame.is_last]
        assert [len(each.codes) - 1 for each in visions] == ends
        texts = "".join(piece for piece in pieces if isinstance(piece, str))
        assert OPENING not in texts
        assert "".join(answer.text.split()) == "".join(texts.split())
        for each in visions:
            assert each.is_video == (len(each.codes) > 1)
            require_alike(each.pixels, drawer.vision.decode(each.codes))


def test_a_chat_with_pictures_goes_on_as_the_same_chat_begun_cold(drawer, open_painter):
    """To the last bit, and what was read of it before is not read again."""
    model, document = open_painter(drawer.mesh, context=1536), "A long text. " * 45
    conversation = Conversation(model, document=document, sampling=CHAT)
    pieces, _ = pieces_of(conversation, "Hi")
    assert frames_of(pieces)
    turns = list(conversation.messages)
    again, length = pieces_of(conversation, "More")
    assert length == len(conversation.ids(conversation.messages[:-1]))
    cold = dataclasses.replace(model)
    fresh = Conversation(cold, document=document, sampling=CHAT)
    fresh.messages = turns
    other, _ = pieces_of(fresh, "More")
    assert list(map(repr, joined(other))) == list(map(repr, joined(again)))
    ours, theirs = conversation._last, fresh._last
    assert ours is not None
    assert theirs is not None
    assert (ours.ids, ours.logprobs) == (theirs.ids, theirs.logprobs)
    assert (ours.usage.cached_tokens, theirs.usage.cached_tokens) == (512, 0)


def test_a_video_given_up_halfway_is_kept_as_far_as_it_went(drawer):
    conversation = Conversation(drawer, sampling=CHAT)
    pieces = conversation.ask("Hi", params=dataclasses.replace(DRAWING, max_tokens=200, seed=1))
    first = next(piece for piece in pieces if isinstance(piece, Frame))
    assert not first.is_last
    pieces.close()
    (kept,) = conversation.messages[-1].visions
    assert kept.codes.tolist() == [first.codes.tolist()]
    assert list(conversation.ask("And?", params=DRAWING))


def test_what_is_drawn_fits_into_the_answer(drawer):
    for room in (SIZE + 1, SIZE + 2, 2 * SIZE, 3 * SIZE):
        params = dataclasses.replace(DRAWING, max_tokens=room)
        for seed in range(4):
            conversation = Conversation(drawer, sampling=CHAT)
            pieces, _ = pieces_of(conversation, "Hi", dataclasses.replace(params, seed=seed))
            frames = frames_of(pieces)
            assert len(frames) <= (room - 1) // (SIZE + 1)
            assert not frames or frames[-1].is_last


def test_marks_that_a_user_types_never_open_a_frame(drawer, open_painter):
    """Even where the prompt ends in them; what the model writes itself does."""
    shy = open_painter(drawer.mesh, eager=0.0)
    shy = dataclasses.replace(shy, template="{% for m in messages %}{{ m.content }}{% endfor %}")
    for typed in (OPENING, f"a {OPENING}", f"{OPENING}{OPENING}"):
        conversation = Conversation(shy, sampling=CHAT)
        prompt = conversation.ids([Message("user", (typed,))])
        assert prompt[-1] == shy.marks.opening[0]
        pieces, _ = pieces_of(conversation, typed, SamplingParams(max_tokens=24))
        assert pieces
        assert not frames_of(pieces)


def test_an_answer_in_text_never_draws(drawer):
    for seed in range(4):
        params = dataclasses.replace(DRAWING, seed=seed)
        draws, writes = Conversation(drawer, sampling=CHAT), Conversation(drawer)
        pieces, _ = pieces_of(draws, "Hi", params)
        text = "".join(itertools.takewhile(lambda piece: isinstance(piece, str), pieces))
        assert frames_of(pieces)
        written, _ = pieces_of(writes, "Hi", params)
        assert "".join(written) == text == drawer.chat("Hi", **dataclasses.asdict(params))
        assert writes.is_without_picture
        assert not writes.was_cut
        assert not draws.is_without_picture


def test_an_answer_that_has_no_room_for_a_picture_is_cut(drawer):
    prompt = Conversation(drawer, sampling=CHAT).ids([Message("user", ("Hi",))])
    lengths = []
    for seed in range(4):
        conversation = Conversation(drawer, sampling=CHAT)
        params = dataclasses.replace(DRAWING, max_tokens=SIZE, seed=seed)
        pieces, _ = pieces_of(conversation, "Hi", params)
        assert not frames_of(pieces)
        assert conversation.was_cut
        lengths.append(conversation.num_tokens - len(prompt))
    assert min(lengths) < SIZE, "where the picture would have begun"
