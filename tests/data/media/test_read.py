"""Items are read in their order, by several processes, even if some of these die."""

import os
from typing import Any

import numpy as np
import pytest

from lwm.data.media.inputs import open_items
from lwm.data.media.read import Sampling, read_item, read_items
from lwm.errors import UserError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_frames": 0}, "max_frames is 0; give at least 1"),
        ({"fps": 0.0}, r"fps is 0\.0; give a number above 0"),
        ({"fps": float("inf")}, "fps is inf; give a number"),
        ({"background": "wite"}, "'wite' is not a colour"),
    ],
)
def test_wrong_sampling(changes, says):
    with pytest.raises(UserError, match=says):
        Sampling(resolution=8, **changes)


class Deadly:
    """Items of which one ends the process that reads it, as a fault in a decoder would."""

    def __init__(self, items, deadly):
        self.items, self.deadly, self.here = items, deadly, os.getpid()

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if index == self.deadly and os.getpid() != self.here:
            os._exit(9)
        return self.items[index]

    def identity(self):
        return []


def test_processes_read_in_order_and_outlive_a_crash(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(9):
        pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    items, sampling = open_items([str(tmp_path)]), Sampling(resolution=8, max_frames=2)
    found: list = list(read_items(Deadly(items, 4), range(9), sampling, 2))
    assert [each.name for each in found] == [f"{i}.png" for i in range(9)]
    assert found[4].reason == "4.png: the process that read it crashed or was killed"
    for number in (0, 3, 5, 8):
        expected: Any = read_item(items, number, sampling)
        np.testing.assert_array_equal(found[number].pixels[0], expected.pixels[0])
        assert found[number].parts[0] is found[number].record
