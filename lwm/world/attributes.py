"""Attributes of the things in the world, and the pairs of attributes that are held out."""

import functools
from typing import Literal, get_args

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "moon")
SPRITES = ("house", "tree", "fish", "car", "boat", "cup")
DIGITS = tuple("0123456789")
KINDS = SHAPES + SPRITES + DIGITS

COLOURS = {
    "red": (225, 20, 30),
    "orange": (255, 135, 0),
    "yellow": (250, 215, 0),
    "green": (20, 160, 60),
    "cyan": (0, 190, 225),
    "blue": (30, 70, 220),
    "purple": (135, 30, 190),
    "pink": (255, 95, 195),
}
BACKGROUNDS = {"white": (255, 255, 255), "grey": (120, 120, 120), "black": (0, 0, 0)}

GRID = 64
"""Places and sizes are in units of a 64th of the picture's side."""
SIZES = {"small": 18, "large": 28}
"""Longer side of a thing."""
NEEDLE = 48
"""Longer side of the digit of a needle."""

DIRECTIONS = ("left", "right", "up", "down")
MOTIONS = ("still", *DIRECTIONS)
EVENTS = ("turns", "grows", "shrinks", "appears", "disappears", "collides")

TURNING = tuple(kind for kind in KINDS if kind not in {"circle", "square", "diamond", "cross"})
"""Kinds that a quarter turn changes."""


@functools.cache
def is_held_out(kind: str, other: str) -> bool:
    """Returns whether a pair of a kind and a colour, direction or event is held out.

    Of each kind two colours, one direction and one event are held out, and of each colour,
    direction and event some kinds.
    """
    index = KINDS.index(kind)
    if other in COLOURS:
        return (5 * index + list(COLOURS).index(other)) % 8 in (0, 3)
    if other in DIRECTIONS:
        return (index + index // 4 + DIRECTIONS.index(other)) % 4 == 0
    if other in EVENTS:
        return (index + index // 6 + EVENTS.index(other)) % 6 == 0
    return False


def in_split(kind: str, colour: str, split: Split) -> bool:
    """Returns whether things of a kind and colour are shown in a split."""
    return is_held_out(kind, colour) == (split == "heldout")
