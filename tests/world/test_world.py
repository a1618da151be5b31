"""The world: the same clips everywhere, nothing hidden, and a split by combinations."""

import hashlib

import numpy as np
import pytest

from lwm.errors import UserError
from lwm.world.attributes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    EVENTS,
    KINDS,
    MOTIONS,
    SHAPES,
    SIZES,
    TURNING,
    is_held_out,
)
from lwm.world.choices import Choices
from lwm.world.facts import Facts
from lwm.world.masks import mask
from lwm.world.scene import Setting, plan
from lwm.world.world import World, WorldConfig, needle_frame


def clips(count, **options):
    world = World(WorldConfig(**options))
    return [world.clip(index) for index in range(count)]


def setting(split, frames):
    return Setting(
        split=split, kinds=KINDS, backgrounds=tuple(BACKGROUNDS), most=3, frames=frames, fps=4.0
    )


@pytest.fixture(scope="module")
def shown():
    """Things of many clips, by split."""
    return {
        split: [
            thing
            for index in range(400)
            for thing in plan(Choices(index), setting(split, 8)).facts.things
        ]
        for split in ("train", "heldout")
    }


def test_clips_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for split, frames, resolution in (("train", 8, 64), ("heldout", 1, 96)):
        for clip in clips(20, split=split, frames=frames, resolution=resolution, seed=3):
            digest.update(clip.pixels.tobytes())
            digest.update(repr((clip.facts, clip.caption, clip.questions)).encode())
    assert digest.hexdigest() == "67f1f7a51256f1a5f358e4e6db1ae3e6c414952cbbb428fd70cf6b23ec8f3c36"


def test_a_clip_depends_on_seed_and_index_alone():
    world = World(WorldConfig(seed=5))
    alone = World(WorldConfig(seed=5)).clip(7)
    for index in range(8):
        clip = world.clip(index)
    assert clip.facts == alone.facts
    assert np.array_equal(clip.pixels, alone.pixels)
    assert World(WorldConfig(seed=6)).clip(7).facts != alone.facts


@pytest.mark.parametrize("frames", [1, 8])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_things_are_whole_and_apart(split, frames):
    for index in range(50):
        scene = plan(Choices("test", split, index), setting(split, frames))
        for t in range(frames):
            covered = np.zeros((64, 64), int)
            for thing, poses in scene.actors:
                if (pose := poses[t]) is None:
                    assert thing.event in ("appears", "disappears")
                    continue
                x, y, side, turned = pose
                left, top = x - side // 2, y - side // 2
                assert min(left, top) >= 2
                assert max(left, top) + side <= 62
                part = mask(thing.kind, side, turned) >= 128
                covered[top : top + side, left : left + side] += part
            assert covered.max() <= 1


def test_held_out_combinations_are_never_in_training(shown):
    for thing in shown["train"]:
        for other in (thing.colour, thing.motion, thing.event):
            assert other is None or not is_held_out(thing.kind, other)
    assert all(is_held_out(thing.kind, thing.colour) for thing in shown["heldout"])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_each_value_is_in_both_splits(shown, split):
    values = {
        "kind": KINDS, "colour": COLOURS, "size": SIZES, "motion": MOTIONS,
        "event": (None, *EVENTS),
    }  # fmt: skip
    for name, known in values.items():
        assert {getattr(thing, name) for thing in shown[split]} == set(known)


def test_every_kind_has_held_out_and_other_pairs():
    for kind in KINDS:
        assert sum(is_held_out(kind, colour) for colour in COLOURS) == 2
        assert sum(is_held_out(kind, way) for way in DIRECTIONS) == 1
        assert sum(is_held_out(kind, event) for event in EVENTS) == 1
    for other in (*COLOURS, *DIRECTIONS, *EVENTS):
        assert 0 < sum(is_held_out(kind, other) for kind in KINDS) < len(KINDS) / 2


def test_a_quarter_turn_changes_only_the_kinds_that_turn():
    for kind in KINDS:
        apart = np.abs(mask(kind, 18).astype(int) - mask(kind, 18, True)).mean() / 255
        assert (apart > 0.1) if kind in TURNING else (apart < 0.02)


def test_films_show_scenes_one_after_another():
    world = World(WorldConfig(kinds=SHAPES, frames=5))
    film = list(world.film(12, seed=1))
    assert np.array_equal(film[:7], list(world.film(7, seed=1)))
    assert not np.array_equal(film[0], next(world.film(12, seed=2)))
    assert not np.array_equal(film[0], world.clip(0).pixels[0])
    assert len(film) == 12
    assert next(world.film(10**9, seed=1)).shape == (64, 64, 3)  # nothing is made ahead


def test_only_the_kinds_and_backgrounds_asked_for_are_shown():
    for clip in clips(40, kinds=("3", "circle"), backgrounds=("white",), most=2, split="heldout"):
        assert {thing.kind for thing in clip.facts.things} <= {"3", "circle"}
        assert clip.facts.background == "white"
        assert len(clip.facts.things) <= 2


def test_facts_survive_json():
    for clip in clips(5):
        assert Facts.from_json(clip.facts.to_json()) == clip.facts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("circle", "dog")}, "kinds is 'circle, dog'; give some of circle, square"),
        ({"kinds": ()}, "kinds is ''"),
        ({"backgrounds": ("blue",)}, "give some of white, grey, black"),
        ({"frames": 0}, "frames is 0; give 1 to 1024"),
        ({"most": 4}, "most is 4; give 1 to 3"),
        ({"resolution": 16}, "resolution is 16"),
        ({"fps": 0.0}, "fps is 0.0"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        WorldConfig(**options)


def test_unknown_needles_are_named():
    assert needle_frame("7", "red", "black", 96).shape == (96, 96, 3)
    for name in ("digit", "colour", "background"):
        given = {"digit": "7", "colour": "red", "background": "white"} | {name: "x"}
        with pytest.raises(UserError, match=f"{name} is 'x'; give one of"):
            needle_frame(given["digit"], given["colour"], given["background"])
