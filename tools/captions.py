"""Captions of emoji: joined to pictures by code point, and split so that nothing leaks.

All skin tones of an emoji are on one side, for stills and clips alike, and which side that is
depends on nothing but the emoji.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDES = ("train", "held-out")
_HELD_OUT_OF = 10
_SALT = "lwm:"
"""With it, a tenth of the clips of each package is held out, however skin tones fall."""
_UNSPOKEN = {"FE0F", "E007F"}
"""The code points that some spellings leave out: "as a picture", and the end of a flag's tags."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Captions and tags of an emoji."""

    caption: str
    tags: tuple[str, ...]
    hexcode: str
    base: str
    """The hexcode of the same emoji without a skin tone."""
    group: str


def spelled(code: str) -> str:
    """Returns a sequence of code points in the one spelling that all are compared in."""
    points = code.upper().replace("_", "-").split("-")
    return "-".join(point.zfill(4) for point in points if point not in _UNSPOKEN)


def read_captions(folder: Path) -> dict[str, Caption]:
    """Returns emojibase's captions by spelled hexcode, from its `data.json` and `messages.json`."""
    emojis = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    messages = json.loads((folder / "messages.json").read_text(encoding="utf-8"))
    groups = {group["order"]: group["key"] for group in messages["groups"]}
    return collect_captions(emojis, groups)


def collect_captions(
    emojis: Iterable[Mapping[str, Any]], groups: Mapping[int, str]
) -> dict[str, Caption]:
    """Returns captions by spelled hexcode; a skin tone has its emoji's tags.

    Args:
        emojis: As emojibase lists them, with the skin tones of each.
        groups: The names of its groups by number.
    """
    found: dict[str, Caption] = {}
    for emoji in emojis:
        for variant in (emoji, *emoji.get("skins", ())):
            key = spelled(variant["hexcode"])
            assert key not in found, f"two emoji are {key}"
            found[key] = Caption(
                caption=variant["label"],
                tags=tuple(emoji.get("tags", ())),
                hexcode=variant["hexcode"],
                base=emoji["hexcode"],
                group=groups.get(emoji.get("group", -1), "other"),
            )
    return found


def side_of(key: str) -> str:
    """Returns the side that a key is on, always the same: one of ten keys is held out."""
    digest = hashlib.sha256(f"{_SALT}{key}".encode()).digest()
    return SIDES[int.from_bytes(digest[:8], "big") % _HELD_OUT_OF == 0]


def join(
    files: Iterable[Path], captions: Mapping[str, Caption], root: Path, **same: str
) -> dict[str, list[dict]]:
    """Returns the records of the pictures that have a caption, by side and in order of hexcode.

    Args:
        files: Pictures named by code points, such as `1f44b-1f3fb.webp`.
        captions: By spelled hexcode.
        root: What the records' paths are relative to.
        same: Further fields, the same in each.
    """
    sides: dict[str, list[dict]] = {side: [] for side in SIDES}
    for file in sorted(files, key=lambda file: spelled(file.stem)):
        if caption := captions.get(spelled(file.stem)):
            record = {
                "path": file.relative_to(root).as_posix(),
                "caption": caption.caption,
                "tags": list(caption.tags),
                "hexcode": caption.hexcode,
                "base": caption.base,
                "group": caption.group,
            }
            sides[side_of(spelled(caption.base))].append(record | same)
    return sides


def is_animated(webp: bytes) -> bool:
    """Returns whether a WebP file says that it holds more than one picture."""
    return webp[:4] == b"RIFF" and webp[8:16] == b"WEBPVP8X" and bool(webp[20] & 0b10)


def write_lines(sides: Mapping[str, Iterable[Mapping]], folder: Path, work: Path) -> None:
    """Writes `train.jsonl` and `held-out.jsonl`, each whole at once.

    Args:
        sides: Records by side.
        folder: Where to write.
        work: A folder on the same file system for what is half written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for side, records in sides.items():
        half = work / f"{side}.jsonl"
        with half.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        os.replace(half, folder / half.name)
