"""Captions and questions of the world: all is said, answers are right, guessing is worth little."""

import re
from collections import Counter

import pytest

from lwm.world.attributes import COLOURS, DIGITS, is_held_out
from lwm.world.language import NUMBERS, ORDINALS, guessing, noun
from lwm.world.world import World, WorldConfig


@pytest.fixture(scope="module", params=["train", "heldout"])
def clips(request):
    world = World(WorldConfig(split=request.param, resolution=32))
    return request.param, [world.clip(index) for index in range(400)]


def asked(clips, kind):
    return [(clip.facts, each) for clip in clips[1] for each in clip.questions if each.kind == kind]


def parts(pattern, text):
    """Returns the parts of a question of known form."""
    found = re.fullmatch(pattern, text)
    assert found is not None, text
    return found.groups()


def named(facts, words):
    """Returns the thing that a colour and noun name."""
    (thing,) = (each for each in facts.things if f"{each.colour} {noun(each.kind)}" == words)
    return thing


def test_captions_state_every_fact(clips):
    for clip in clips[1]:
        for thing in clip.facts.things:
            assert f"{thing.size} {thing.colour} {noun(thing.kind)}" in clip.caption.lower()
            if thing.event is None and thing.motion != "still":
                assert re.search(rf"moves (to the )?{thing.motion}", clip.caption)
            if thing.event not in (None, "collides"):
                assert thing.event in clip.caption
            if thing.frame is not None:
                assert f"in the {ORDINALS[thing.frame // 4]} second" in clip.caption
        assert clip.facts.background in clip.caption.lower()
        assert clip.caption[0].isupper()


def test_there_are_several_forms_of_captions(clips):
    starts = Counter(clip.caption.split()[0] for clip in clips[1])
    assert {"A", "On", "White", "Black", "Grey"} <= set(starts)


def test_a_question_of_existence_is_answered_rightly(clips):
    split = clips[0]
    for facts, each in asked(clips, "exists"):
        colour, kind = parts(r"Is there an? (\w+) (?:digit )?(\w+)\?", each.question)
        there = any((thing.colour, thing.kind) == (colour, kind) for thing in facts.things)
        assert each.answer == ("yes" if there else "no")
        # No answer is given away by a combination that the split does not show.
        assert is_held_out(kind, colour) == (split == "heldout")


def test_counts_are_right(clips):
    for facts, each in asked(clips, "count"):
        (plural,) = parts(r"How many (\w+) are there\?", each.question)
        kinds = [thing.kind for thing in facts.things]
        several = {f"{kind}s": kind for kind in kinds} | {"crosses": "cross", "fish": "fish"}
        count = len(kinds) if plural == "things" else kinds.count(several[plural])
        assert each.answer == NUMBERS[count]


def test_directions_orders_and_seconds_are_right(clips):
    for facts, each in asked(clips, "direction"):
        (words,) = parts(r"Which way does the (.+) move\?", each.question)
        assert each.answer == named(facts, words).motion
    for facts, each in asked(clips, "first"):
        pair = parts(r"Which changes first, the (.+) or the (.+)\?", each.question)
        first, other = sorted((named(facts, words) for words in pair), key=lambda t: t.frame)
        assert first.frame < other.frame
        assert each.answer == f"{first.colour} {noun(first.kind)}"
    for facts, each in asked(clips, "second"):
        words, verb = parts(r"In which second does the (.+) (\w+)\?", each.question)
        thing = named(facts, words)
        assert thing.event == f"{verb}s"
        assert each.answer == ORDINALS[thing.frame // 4]


def test_things_and_colours_are_named_rightly(clips):
    for facts, each in asked(clips, "colour"):
        (name,) = parts(r"What colour is the (?:digit )?(\w+)\?", each.question)
        assert [thing.colour for thing in facts.things if thing.kind == name] == [each.answer]
    for facts, each in asked(clips, "what"):
        if found := re.fullmatch(r"What is the (\w+) thing\?", each.question):
            assert [t.kind for t in facts.things if t.colour == found[1]] == [each.answer]
        else:
            (words,) = parts(r"What happens to the (.+)\?", each.question)
            assert each.answer == f"it {named(facts, words).event}"


def test_guessing_is_worth_little(clips):
    shares = guessing(each for clip in clips[1] for each in clip.questions)
    highest = {
        "what": 0.2, "colour": 0.25, "count": 0.58, "direction": 0.35, "first": 0.5,
        "second": 0.62, "exists": 0.58,
    }  # fmt: skip
    assert shares.keys() == highest.keys()
    assert all(shares[kind] <= highest[kind] for kind in shares)


def test_pictures_have_the_questions_that_a_picture_can_answer():
    world = World(WorldConfig(frames=1))
    for index in range(60):
        clip = world.clip(index)
        assert {each.kind for each in clip.questions} <= {"what", "colour", "count", "exists"}
        assert not re.search("moves|still|second", clip.caption)


def test_digits_are_called_digits():
    world = World(WorldConfig(frames=1, kinds=DIGITS))
    for index in range(20):
        assert re.search(rf"({'|'.join(COLOURS)}) digit \d", world.clip(index).caption)


def test_one_kind_alone_may_show_all_its_held_out_colours():
    world = World(WorldConfig(split="heldout", kinds=("circle",)))
    asked = [each for index in range(20) for each in world.clip(index).questions]
    assert {each.answer for each in asked if each.kind == "exists"} == {"yes", "no"}
