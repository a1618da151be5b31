"""The world: the same clips everywhere, a split by combinations, and questions with one answer."""

import itertools

import pytest

from lwm.world.attributes import COLOURS, DIGITS
from lwm.world.checker import read_facts
from lwm.world.world import World, WorldConfig, needle_frame


def clips(count, **options):
    world = World(WorldConfig(**options))
    return [world.clip(index) for index in range(count)]


@pytest.mark.parametrize("frames", [1, 8])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_checker_reads_exactly_what_was_drawn(split, frames):
    for clip in clips(40, split=split, frames=frames):
        assert read_facts(clip.pixels, fps=4.0) == clip.facts


@pytest.mark.parametrize("digit", DIGITS)
def test_needles_are_read(digit):
    for colour, background in itertools.product(COLOURS, ("white", "grey", "black")):
        frame = needle_frame(digit, colour, background)
        (thing,) = read_facts(frame[None], fps=1.0).things
        assert (thing.kind, thing.colour) == (digit, colour)
