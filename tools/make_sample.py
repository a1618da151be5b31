"""Makes the small clips in `lwm/assets/clips` from the original ones.

    python tools/fetch_data.py --sets clips-1 clips-2 clips-3 clips-4
    python tools/make_sample.py

Each is an animated WebP of a few frames, evenly spaced in the original, over white, with lossless
pixels. The same packages and the same Pillow give the same bytes.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import PIL
import tyro
from fetch_data import CLIPS, run
from PIL import Image, ImageSequence

from lwm.errors import UserError

ROOT = Path(__file__).parents[1]
Frames = list[Image.Image]

_LICENCE = """The clips are Microsoft's Fluent Emoji, of which frames were taken, laid over
white and made smaller. They come from the npm packages
@lobehub/fluent-emoji-anim-1 to -4, version 1.0.0; captions and tags from
emojibase-data, version 17.0.0. All are under the MIT licence.

MIT License

Copyright (c) 2023 LobeHub
Copyright (c) Microsoft Corporation
Copyright (c) 2017-2019 Miles Johnson (captions and tags)

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Options of the sample."""

    data: Path = ROOT / "data"
    """Where `fetch_data.py` put all four packages of clips."""
    folder: Path = ROOT / "lwm" / "assets" / "clips"
    clips: int = 64
    frames: int = 8
    side: int = 64
    """Pixels."""
    caption: int = 24
    """Characters that a caption may have."""
    motion: float = 4.0
    """Least mean difference of two consecutive frames, of 255."""


def main(config: Sample) -> None:
    """Writes the clips, `captions.jsonl` and `LICENSE`."""
    records = read_candidates(config)
    size, lines = 0, []
    with tempfile.TemporaryDirectory(dir=config.folder.parent, prefix=".sample-") as work:
        whole = Path(work) / "whole"
        whole.mkdir()
        for record, data in itertools.islice(_made(records, config), config.clips):
            file = f"{record['hexcode'].lower()}.webp"
            (whole / file).write_bytes(data)
            kept = {key: record[key] for key in ("caption", "tags", "hexcode", "group")}
            lines.append(json.dumps({"file": file} | kept, ensure_ascii=False) + "\n")
            size += len(data)
        if len(lines) < config.clips:
            raise UserError(f"only {len(lines)} clips are fit for the sample; ask for fewer")
        (whole / "captions.jsonl").write_text("".join(sorted(lines)), encoding="utf-8")
        (whole / "LICENSE").write_text(_LICENCE, encoding="utf-8")
        if config.folder.exists():
            config.folder.replace(Path(work) / "old")
        whole.replace(config.folder)
    print(f"{len(lines)} clips, {size / 1e6:.2f} MB, by Pillow {PIL.__version__}")


def read_candidates(config: Sample) -> list[dict]:
    """Returns the clips to train on that have a short caption, from all groups in turn.

    Of people and skin tones, only what is one code point is taken.

    Raises:
        UserError: Not all packages of clips are there.
    """
    listed = config.data / "clips" / "train.jsonl"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    records = [json.loads(line) for line in lines]
    missing = CLIPS.keys() - {Path(record["path"]).parts[0] for record in records}
    if missing:
        sets = " ".join(sorted(missing))
        raise UserError(f"{config.data} lacks {sets}: python tools/fetch_data.py --sets {sets}")
    short = (
        record
        for record in records
        if "-" not in record["hexcode"] and len(record["caption"]) <= config.caption
    )
    return in_turn(short)


def in_turn(records: Iterable[dict]) -> list[dict]:
    """Returns records with one of each group after the other, in an order that no name follows."""
    groups: dict[str, list[dict]] = {}
    for record in sorted(records, key=lambda record: _shuffled(record["hexcode"])):
        groups.setdefault(record["group"], []).append(record)
    rounds = itertools.zip_longest(*(groups[name] for name in sorted(groups)))
    return [record for each in rounds for record in each if record]


def _shuffled(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8")).hexdigest()


def _made(records: Iterable[dict], config: Sample) -> Iterator[tuple[dict, bytes]]:
    """Yields the records whose clip moves enough, with the small clip."""
    for record in records:
        with Image.open(config.data / "clips" / record["path"]) as clip:
            frames, duration = take_frames(clip, config.frames, config.side)
        if motion(frames) >= config.motion:
            data = pack_frames(frames, duration)
            if _unpack(data) == [frame.tobytes() for frame in frames]:
                yield record, data


def take_frames(clip: Image.Image, count: int, side: int) -> tuple[Frames, int]:
    """Returns frames taken evenly, square and over white, and the milliseconds of each."""
    durations, frames = [], []
    for frame in ImageSequence.Iterator(clip):
        frames.append(frame.convert("RGBA"))
        durations.append(frame.info["duration"])
    taken = [frames[index * len(frames) // count] for index in range(count)]
    return [_small(frame, side) for frame in taken], round(sum(durations) / count)


def _small(frame: Image.Image, side: int) -> Image.Image:
    longest = max(frame.size)
    white = Image.new("RGBA", (longest, longest), "white")
    corner = ((longest - frame.width) // 2, (longest - frame.height) // 2)
    white.alpha_composite(frame, corner)
    return white.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def motion(frames: Frames) -> float:
    """Returns how much two frames in a row differ on average, of 255."""
    pixels = np.stack([np.asarray(frame, np.float32) for frame in frames])
    return float(np.abs(np.diff(pixels, axis=0)).mean())


def pack_frames(frames: Frames, duration: int) -> bytes:
    """Returns an animated WebP that loops and holds the very pixels."""
    packed = io.BytesIO()
    frames[0].save(
        packed,
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=duration,
        loop=0,
        lossless=True,
        quality=100,
        method=6,
    )
    return packed.getvalue()


def _unpack(data: bytes) -> list[bytes]:
    """Returns each frame's pixels: equal frames in a row would have become one."""
    with Image.open(io.BytesIO(data)) as clip:
        return [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(clip)]


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Sample)))
