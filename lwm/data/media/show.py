"""Writes a web page of a media set: frames decoded from their codes, or rendered, with texts."""

import base64
import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import UInt8

from lwm.data.media.inputs import open_items
from lwm.data.media.read import Pictures, Sampling, read_item
from lwm.data.media.summary import BAD, MediaSummary
from lwm.data.media.world import WorldItems, WorldSet
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.files import reading, write_bytes
from lwm.media.write import write_image
from lwm.progress import Progress
from lwm.vqgan.checkpoint import locate_vqgan
from lwm.vqgan.tokenizer import VisionTokenizer

_FRAMES = 24
"""Frames shown of a video, at most."""
_WIDEST = 16_383
"""Pixels of a WebP along a side, at most."""
_BAD = 200
"""Bad items listed, at most."""
_PER_SECOND = (1.0, 12.0)
"""Lowest and highest frame rate of a video."""


class Picture(NamedTuple):
    """An image or a video on the page."""

    source: str
    """A data URI: the frames side by side."""
    frames: int
    """Frames shown."""
    total: int
    """Frames of the item."""
    seconds: float
    is_video: bool

    @property
    def lasts(self) -> float:
        """Seconds in which the frames are shown once."""
        low, high = _PER_SECOND
        rate = (self.frames - 1) / self.seconds if self.seconds > 0 else high
        return self.frames / min(max(rate, low), high)


class Line(NamedTuple):
    """A text or a picture of an item, with its label, such as a role."""

    label: str
    text: str = ""
    picture: Picture | None = None


Decoded = tuple[Picture, UInt8[np.ndarray, "N R R 3"]]
PictureOf = Callable[[dict[str, Any]], Decoded | None]


def show(
    folder: Path,
    *,
    vqgan: Path | None = None,
    originals: Sequence[str] = (),
    out: Path | None = None,
    count: int = 64,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Writes a page of items, evenly spaced over a set; returns its path.

    Args:
        folder: A folder that `lwm tokenize` wrote.
        vqgan: The path of the VQGAN that made the codes; by default its path at that time.
        originals: The files that were tokenized: items of the same names are shown beside those of
            the codes, with PSNR.
        out: The page; by default `sheet.html` in the folder.
        count: Items on the page, at most.
        progress: Called with the number of items done and their total.

    Raises:
        UserError: The folder has no complete set, the VQGAN is missing or another one, or the page
            cannot be written.
    """
    _require_some(count)
    summary = MediaSummary.read(folder)
    path = locate_vqgan(vqgan or summary.codebook.source)
    if not path.exists():
        raise UserError(f"{path}, which made the codes, does not exist; give its path with --vqgan")
    vision = VisionTokenizer.open(path, resolution=summary.codebook.resolution)
    if vision.codebook.fingerprint != summary.codebook.fingerprint:
        raise UserError(f"{path} is not the VQGAN that made the codes of {folder}; give that one")
    source = open_source(folder)
    picture_of = functools.partial(_picture_of, vision=vision)
    original_of = _Originals(originals, Sampling(**summary.sampling)) if originals else None
    numbers = _evenly(len(source), count, progress)
    cards = [_card(source[number].value, picture_of, original_of) for number in numbers]
    page = _render(
        folder.absolute().name,
        "Each frame was decoded from its codes: this is what a model can see of it.",
        _facts(summary, sum(bool(card["lines"]) for card in cards), len(cards)),
        cards,
        items=summary.counts.items,
        bad=list(_bad(folder / BAD)),
        num_bad=summary.counts.bad,
    )
    return _written(page, out or folder / "sheet.html")


def show_world(
    name: str, out: Path, *, count: int = 64, progress: Progress = lambda done, total: None
) -> Path:
    """Writes a page of clips of the world, evenly spaced over a set; returns its path.

    Each clip is shown as it is rendered, with its caption and all of its questions.

    Args:
        name: See `WorldSet.parse`.
        out: The page.
        count: Clips on the page, at most.
        progress: Called with the number of clips done and their total.

    Raises:
        UserError: There is no such set, or the page cannot be written.
    """
    _require_some(count)
    items = WorldItems(WorldSet.parse(name))
    config = items.set.world

    def card(number: int) -> dict[str, Any]:
        clip, seconds = items.clip(number), (config.frames - 1) / config.fps
        pixels = _few(clip.pixels, config.resolution)
        lines = [Line("", clip.caption)]
        lines += [Line(asked.question, asked.answer) for asked in clip.questions]
        picture = _picture(pixels, seconds, is_video=config.frames > 1)
        picture = picture._replace(total=config.frames)
        return {"name": items[number].name, "picture": picture, "original": None, "lines": lines}

    facts = {
        "Clips": f"{len(items):,}",
        "Frames of a clip": f"{config.frames}, {config.fps:g} a second",
        "Frame": f"{config.resolution} × {config.resolution} pixels",
        "Seed": str(config.seed),
    }
    cards = list(map(card, _evenly(len(items), count, progress)))
    page = _render(
        name,
        "Each frame is as it is rendered, without codes.",
        facts,
        cards,
        items=len(items),
    )
    return _written(page, out)


def _require_some(count: int) -> None:
    if count < 1:
        raise UserError(f"count {count} must be at least 1")


def _evenly(total: int, count: int, progress: Progress) -> Iterator[int]:
    """Yields at most `count` numbers, evenly spaced; reports progress after each."""
    numbers = np.linspace(0, total - 1, min(count, total)).astype(int).tolist()
    for done, number in enumerate(numbers, 1):
        yield number
        progress(done, len(numbers))


def _picture_of(part: dict[str, Any], vision: VisionTokenizer) -> Decoded | None:
    """Decodes a record or a part of a message; returns None if it has no codes."""
    if not part.get("vision"):
        return None
    codes = np.asarray(part["vision"], np.int32).reshape(-1, vision.tokens_per_frame)
    codes = _few(codes, vision.resolution)
    times = part["times"]
    pixels = vision.decode(codes)
    picture = _picture(pixels, times[-1] - times[0], is_video=part["is_video"])
    return picture._replace(total=len(times)), pixels


def _few(frames: np.ndarray, resolution: int) -> np.ndarray:
    """Returns the frames that are shown, evenly spaced: as many as one picture holds abreast."""
    most = min(_FRAMES, _WIDEST // resolution)
    if len(frames) <= most:
        return frames
    return frames[np.linspace(0, len(frames) - 1, most).astype(int)]


class _Originals:
    """Frames of the files that were tokenized, by the names of their items."""

    def __init__(self, files: Sequence[str], sampling: Sampling):
        self._items, self._sampling = open_items(files), sampling
        self._numbers = {self._items[n].name: n for n in range(len(self._items))}

    def __call__(self, name: str) -> UInt8[np.ndarray, "N R R 3"] | None:
        """Returns the frames of an item with one image or video; None if there is no such file."""
        if (number := self._numbers.get(name)) is None:
            return None
        found = read_item(self._items, number, self._sampling)
        if not isinstance(found, Pictures) or not found.pixels:
            return None
        return _few(found.pixels[0], self._sampling.resolution)


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB."""
    error = np.mean(np.square(one.astype(np.float64) - other))
    return 10 * math.log10(255**2 / max(error, 1e-10))


def _picture(pixels: UInt8[np.ndarray, "N R R 3"], seconds: float, *, is_video: bool) -> Picture:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.webp"
        write_image(file, np.concatenate(pixels, axis=1))
        source = f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"
    return Picture(source, len(pixels), len(pixels), seconds, is_video)


def _card(
    record: dict[str, Any], picture_of: PictureOf, original_of: "_Originals | None"
) -> dict[str, Any]:
    lines = [
        Line("" if key == "caption" else key, text)
        for key in ("caption", "question", "answer")
        for text in _listed(record.get(key))
        if isinstance(text, str) and text
    ]
    document = {"content": record.get("parts") or []}
    lines += _turns([*(record.get("messages") or []), document], picture_of)
    card: dict[str, Any] = {"name": record["name"], "picture": None, "original": None}
    card["lines"] = lines
    if (found := picture_of(record)) is None:
        return card
    card["picture"], decoded = found
    original = None if original_of is None else original_of(record["name"])
    if original is not None and original.shape == decoded.shape:
        card["original"] = _picture(original, found[0].seconds, is_video=found[0].is_video)
        card["psnr"] = _psnr(original, decoded)
    return card


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _turns(messages: list[dict[str, Any]], picture_of: PictureOf) -> Iterator[Line]:
    for turn in messages:
        label, content = str(turn.get("role", "")), turn["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            found = picture_of(part)
            yield Line(label, part.get("text") or "", None if found is None else found[0])
            label = ""


def _facts(summary: MediaSummary, captions: int, shown: int) -> dict[str, str]:
    counts, codebook, sampling = summary.counts, summary.codebook, summary.sampling
    frames = "all" if sampling["max_frames"] is None else f"at most {sampling['max_frames']}"
    if sampling["fps"] is not None:
        frames += f", {sampling['fps']:g} a second"
    return {
        "Items": f"{counts.items:,}",
        "Images, videos": f"{counts.images:,}, {counts.videos:,}",
        "Captions": f"{captions:,} of the {shown:,} shown",
        "Frames": f"{counts.frames:,}",
        "Codes": f"{counts.frames * codebook.tokens_per_frame:,}",
        "Bad": f"{counts.bad:,}",
        "Skipped": f"{counts.passed_over:,}",
        "Frame": f"{codebook.resolution} × {codebook.resolution} pixels, "
        f"{codebook.tokens_per_frame} codes of {codebook.codes:,}",
        "Frames of a video": frames,
        "Fit": sampling["fit"],
        "VQGAN": f"{Path(codebook.source).name}, {codebook.fingerprint[:12]}",
        "Shards": f"{len(summary.shards):,}, {sum(s.size for s in summary.shards) / 1e6:,.1f} MB",
    }


def _render(
    title: str,
    origin: str,
    facts: dict[str, str],
    cards: list[dict[str, Any]],
    *,
    items: int,
    bad: Sequence[dict[str, str]] = (),
    num_bad: int = 0,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lwm", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("media.html.j2").render(
        title=title,
        origin=origin,
        facts=facts,
        cards=cards,
        bad=bad,
        num_bad=num_bad,
        items=items,
        today=date.today().isoformat(),
    )


def _written(page: str, out: Path) -> Path:
    # Names and captions may hold bytes that are not text.
    write_bytes(out, page.encode(errors="replace"))
    return out


def _bad(file: Path) -> Iterator[dict[str, str]]:
    with reading(file), file.open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(_BAD), strict=False):
            yield json.loads(line)
