"""Writes a web page of a media set: frames decoded from their codes, with their texts."""

import base64
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from lwm.data.media.summary import BAD, MediaSummary
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.files import reading, write_bytes
from lwm.media.write import write_image, write_video
from lwm.progress import Progress
from lwm.vqgan.checkpoint import locate_vqgan
from lwm.vqgan.tokenizer import VisionTokenizer

_FRAMES = 24
"""Frames shown of a video, at most."""
_BAD = 200
"""Bad items listed, at most."""
_PER_SECOND = (1.0, 12.0)
"""Lowest and highest frame rate of a video."""


class Picture(NamedTuple):
    """An image or a video on the page."""

    source: str
    """A data URI."""
    frames: int
    seconds: float
    is_video: bool


class Line(NamedTuple):
    """A text or a picture of an item, with its label, such as a role."""

    label: str
    text: str = ""
    picture: Picture | None = None


PictureOf = Callable[[dict[str, Any]], Picture | None]


def show(
    folder: Path,
    *,
    vqgan: Path | None = None,
    out: Path | None = None,
    count: int = 64,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Writes a page of items, evenly spaced over a set; returns its path.

    Args:
        folder: A folder that `lwm tokenize` wrote.
        vqgan: The path of the VQGAN that made the codes; by default its path at that time.
        out: The page; by default `sheet.html` in the folder.
        count: Items on the page, at most.
        progress: Called with the number of items done and their total.

    Raises:
        UserError: The folder has no complete set, the VQGAN is missing or another one, or the page
            cannot be written.
    """
    if count < 1:
        raise UserError(f"count {count} must be at least 1")
    summary = MediaSummary.read(folder)
    path = locate_vqgan(vqgan or summary.codebook.source)
    if not path.exists():
        raise UserError(f"{path}, which made the codes, does not exist; give its path with --vqgan")
    vision = VisionTokenizer.open(path, resolution=summary.codebook.resolution)
    if vision.codebook.fingerprint != summary.codebook.fingerprint:
        raise UserError(f"{path} is not the VQGAN that made the codes of {folder}; give that one")
    source = open_source(folder)
    numbers = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    picture_of, cards = functools.partial(_picture_of, vision=vision), []
    for done, number in enumerate(numbers.tolist(), 1):
        cards.append(_card(source[number].value, picture_of))
        progress(done, len(numbers))
    page = out or folder / "sheet.html"
    # Names and captions may hold bytes that are not text.
    write_bytes(page, _render(folder, summary, cards).encode(errors="replace"))
    return page


def _picture_of(part: dict[str, Any], vision: VisionTokenizer) -> Picture | None:
    """Decodes a record or a part of a message; returns None if it has no codes."""
    if not part.get("vision"):
        return None
    codes = np.asarray(part["vision"], np.int32).reshape(-1, vision.tokens_per_frame)
    if len(codes) > _FRAMES:
        codes = codes[np.linspace(0, len(codes) - 1, _FRAMES).astype(int)]
    pixels, times = vision.decode(codes), part["times"]
    seconds = times[-1] - times[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.webp"
        if len(pixels) > 1:
            low, high = _PER_SECOND
            fps = (len(pixels) - 1) / seconds if seconds > 0 else high
            write_video(file, pixels, min(max(fps, low), high))
        else:
            write_image(file, pixels[0])
        source = f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"
    return Picture(source, len(times), seconds, part["is_video"])


def _card(record: dict[str, Any], picture_of: PictureOf) -> dict[str, Any]:
    lines = [
        Line("" if key == "caption" else key, text)
        for key in ("caption", "question", "answer")
        for text in _listed(record.get(key))
        if isinstance(text, str) and text
    ]
    document = {"content": record.get("parts") or []}
    lines += _turns([*(record.get("messages") or []), document], picture_of)
    return {"name": record["name"], "picture": picture_of(record), "lines": lines}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _turns(messages: list[dict[str, Any]], picture_of: PictureOf) -> Iterator[Line]:
    for turn in messages:
        label, content = str(turn.get("role", "")), turn["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            yield Line(label, part.get("text") or "", picture_of(part))
            label = ""


def _render(folder: Path, summary: MediaSummary, cards: list[dict[str, Any]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lwm", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    counts, codebook, sampling = summary.counts, summary.codebook, summary.sampling
    frames = "all" if sampling["max_frames"] is None else f"at most {sampling['max_frames']}"
    if sampling["fps"] is not None:
        frames += f", {sampling['fps']:g} a second"
    facts = {
        "Items": f"{counts.items:,}",
        "Images, videos": f"{counts.images:,}, {counts.videos:,}",
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
    return environment.get_template("media.html.j2").render(
        title=folder.absolute().name,
        facts=facts,
        cards=cards,
        bad=list(_bad(folder / BAD)),
        num_bad=counts.bad,
        items=counts.items,
        today=date.today().isoformat(),
    )


def _bad(file: Path) -> Iterator[dict[str, str]]:
    with reading(file), file.open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(_BAD), strict=False):
            yield json.loads(line)
