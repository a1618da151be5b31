"""Texts of every kind, for tests of tokenizers."""

import random
from importlib import resources

BOOK = resources.files("lwm") / "assets" / "moby-dick" / "chapter-1.txt"


def random_texts(count: int) -> list[str]:
    """Draw texts of ASCII, other scripts, emoji and white space, mixed."""
    rng = random.Random(0)
    ranges = [(32, 127), (0xA0, 0x3000), (0x4E00, 0x9FFF), (0x1F300, 0x1F700), (9, 14), (48, 58)]
    return [
        "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(50)) for _ in range(count)
    ]


TEXTS = [
    "hello world",
    "",
    " ",
    "   ",
    "  two  spaces  ",
    "a\n\nb\t c\r\n \n",
    "héllo 日本語 😀 👩‍👩‍👧 \u200d\u0301",
    "12345 6 7,890.12 x² ½ Ⅻ ٣४",
    "it's they'LL we've",
    "def f(x):\n    return x\n",
    "\u2581 as typed",
    *random_texts(40),
]
