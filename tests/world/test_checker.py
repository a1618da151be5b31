"""The checker reads what was drawn, and through the damage that a VQGAN does."""

import itertools
from collections import Counter

import numpy as np
import pytest

from lwm.world.attributes import BACKGROUNDS, COLOURS, DIGITS
from lwm.world.checker import agreement, read_facts
from lwm.world.facts import Facts, Thing
from lwm.world.labels import connected
from lwm.world.world import World, WorldConfig, needle_frame

RED = Thing(kind="circle", colour="red", size="small", motion="left")
BLUE = Thing(kind="star", colour="blue", size="large", motion="still", event="turns", frame=3)


def facts(*things, background="white"):
    return Facts(things=things, background=background, frames=8, fps=4.0)


@pytest.mark.parametrize(
    ("split", "options", "count"),
    [
        ("train", {}, 60),
        ("heldout", {}, 60),
        ("train", {"frames": 1}, 60),
        ("heldout", {"frames": 1}, 60),
        ("train", {"frames": 2}, 20),
        ("heldout", {"frames": 16, "fps": 2.0}, 20),
        ("train", {"resolution": 128}, 12),
        ("heldout", {"resolution": 96}, 12),
    ],
)
def test_the_checker_reads_exactly_what_was_drawn(split, options, count):
    world = World(WorldConfig(split=split, **options))
    for index in range(count):
        clip = world.clip(index)
        assert read_facts(clip.pixels, fps=world.config.fps) == clip.facts


@pytest.mark.parametrize(("split", "index"), [("train", 2528), ("heldout", 3019)])
def test_things_that_touch_are_apart_from_one_that_appears_beside_them(split, index):
    clip = World(WorldConfig(split=split)).clip(index)
    events = [thing.event for thing in clip.facts.things]
    assert sorted(map(str, events)) == ["appears", "collides", "collides"]
    assert read_facts(clip.pixels, fps=4.0) == clip.facts


def test_needles_are_read():
    backgrounds = itertools.cycle(BACKGROUNDS)
    for (digit, colour), background in zip(
        itertools.product(DIGITS, COLOURS), backgrounds, strict=False
    ):
        frame = needle_frame(digit, colour, background)
        seen = read_facts(frame[None], fps=1.0)
        assert [(thing.kind, thing.colour) for thing in seen.things] == [(digit, colour)]
        assert seen.background == background


def damaged(pixels, random):
    """Blurs frames, shifts and mixes their colours, and adds noise and specks."""
    soft = pixels.astype(np.float32)
    for axis in (1, 2):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    soft = soft * 0.9 + 12 + random.normal(0, 6, (len(soft), 1, 1, 3))
    soft += random.normal(0, 8, soft.shape)
    for frame in soft:
        for x, y in random.integers(0, 61, (3, 2)):
            frame[y : y + 3, x : x + 3] = random.integers(0, 256, 3)
    return np.clip(soft, 0, 255).astype(np.uint8)


def test_the_checker_reads_damaged_clips():
    random, good = np.random.default_rng(0), Counter()
    world = World(WorldConfig())
    for index in range(60):
        clip = world.clip(index)
        seen = read_facts(damaged(clip.pixels, random), fps=4.0)
        good.update(name for name, same in agreement(clip.facts, seen).items() if same)
    assert min(good.values()) >= 54


@pytest.mark.parametrize("pixels", ["noise", "plain", "other"])
def test_any_pixels_are_read(pixels):
    random = np.random.default_rng(1)
    made = {
        "noise": random.integers(0, 256, (8, 64, 64, 3)),
        "plain": np.full((8, 64, 64, 3), 200),
        "other": np.repeat(random.integers(0, 256, (8, 2, 2, 3)), 32, 1).repeat(32, 2),
    }[pixels].astype(np.uint8)
    seen = read_facts(made, fps=4.0)
    assert seen.frames == 8
    assert not agreement(facts(RED), seen)["all"]
    assert (pixels != "plain") or seen.things == ()


def test_facts_that_are_equal_agree_in_all():
    both = facts(RED, BLUE)
    assert all(agreement(both, both).values())


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [
        (facts(RED, BLUE, background="black"), {"background"}),
        (facts(RED), {"kind", "colour", "size", "motion", "event", "time", "count"}),
        (facts(RED, RED, BLUE), {"count"}),
        (facts(RED, Thing(**vars(BLUE) | {"kind": "heart"})), {"kind"}),
        (facts(RED, Thing(**vars(BLUE) | {"frame": 2})), set()),  # in the same second
        (facts(RED, Thing(**vars(BLUE) | {"frame": 4})), {"time"}),
        (facts(RED, Thing(**vars(BLUE) | {"event": None, "frame": None})), {"event", "time"}),
        # Each colour is there, and each kind, but not together.
        (
            facts(Thing(**vars(RED) | {"colour": "blue"}), Thing(**vars(BLUE) | {"colour": "red"})),
            {"colour"},
        ),
    ],
)
def test_a_difference_is_found_in_its_attribute(seen, wrong):
    same = agreement(facts(RED, BLUE), seen)
    assert {name for name, agrees in same.items() if not agrees} == wrong | (
        {"all"} if wrong else set()
    )


def test_regions_are_those_of_joined_pixels_of_one_class():
    drawn = ["aa.b", ".a.b", ".aab", "a..."]
    classes = np.array([[" .ab".index(letter) - 2 for letter in row] for row in drawn])
    expected = np.array([[0, 0, -1, 1], [-1, 0, -1, 1], [-1, 0, 0, 1], [2, -1, -1, -1]])
    classes[classes == -1] = -1
    labels, count = connected(np.stack([classes, classes]))
    assert count == 6
    assert np.array_equal(labels[0], expected)
    assert np.array_equal(labels[1], np.where(expected >= 0, expected + 3, -1))
