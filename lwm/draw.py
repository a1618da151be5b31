"""What `lwm generate image` and `lwm generate video` do: draw, show on the way, and write files."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lwm.cli_common import Placing
from lwm.console import Preview, waiting
from lwm.data.message import Vision
from lwm.data.write_media import IMAGES, VIDEOS, contact_sheet, write_image, write_video
from lwm.errors import UserError
from lwm.generate.drawing import Drawings
from lwm.generate.language_model import LanguageModel
from lwm.generate.vision import Finished, draw
from lwm.talk import open_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be drawn."""

    prompt: str
    kind: Literal["image", "video"]
    frames: int = 1
    first: Path | None = None
    """An image or a video that the frames go on from."""
    first_as_image: bool = False
    """Whether the first frame is drawn from the prompt for an image."""
    n: int = 1
    seed: int = 0

    def __post_init__(self):
        """Refuses what cannot be drawn.

        Raises:
            UserError: The value.
        """
        if self.n < 1:
            raise UserError(f"n {self.n} must be at least 1")
        if self.frames < 1:
            raise UserError(f"frames {self.frames} must be at least 1")
        if not 0 <= self.seed <= 2**32 - self.n:
            raise UserError(f"seed {self.seed} must be from 0 to 4294967295")
        if self.first is not None and self.first_as_image:
            raise UserError("give --image or --first-as-image: either says what comes first")
        if self.first_as_image and self.frames < 2:
            raise UserError("--first-as-image needs at least 2 --frames")


def draw_files(
    name: str,
    asked: Asked,
    *,
    out: Path,
    grid: bool,
    drawings: Drawings,
    placing: Placing,
    fps: float = 1.0,
) -> None:
    """Draws, and prints the paths of what it wrote.

    Raises:
        UserError: The model cannot draw, or the files cannot be written; the latter is found out
            before anything is drawn.
    """
    files = _files(asked, out, grid=grid)
    model = open_model(name, placing)
    found = _drawn(model, asked, drawings)
    pixels = [vision.pixels for vision in found if vision.pixels is not None]
    if grid:
        columns = int(np.ceil(np.sqrt(len(pixels))))
        pixels = [np.stack([contact_sheet(list(at), columns) for at in zip(*pixels, strict=True)])]
    for file, shown in zip(files, pixels, strict=True):
        if asked.kind == "image":
            write_image(file, shown[0])
        else:
            write_video(file, shown, fps)
        print(file)


def _files(asked: Asked, out: Path, *, grid: bool) -> list[Path]:
    """Returns the files to write, once it is clear that they can be."""
    known = IMAGES if asked.kind == "image" else VIDEOS
    if out.suffix.lower() not in known:
        raise UserError(f"{out} ends in none of {', '.join(known)}")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir():
        raise UserError(f"{out} cannot be written; choose a file in a folder that is there")
    if grid or asked.n == 1:
        return [out]
    width = len(str(asked.n))
    return [out.with_stem(f"{out.stem}-{i:0{width}}") for i in range(1, asked.n + 1)]


def _drawn(model: LanguageModel, asked: Asked, drawings: Drawings) -> list[Vision]:
    first: list[Vision] | None = None
    if asked.first is not None:
        first = [model.vision.read(asked.first)] * asked.n
    if asked.first_as_image:
        image = dataclasses.replace(asked, kind="image", frames=1, first_as_image=False)
        first = _finished(model, image, drawings, None)
    return _finished(model, asked, drawings, first)


def _finished(
    model: LanguageModel, asked: Asked, drawings: Drawings, first: Sequence[Vision] | None
) -> list[Vision]:
    """Draws, and shows each frame when it is done."""
    preview = Preview(asked.n)
    with waiting("drawing", "ids", console=preview.console) as tell:
        drawn = draw(
            model,
            [asked.prompt] * asked.n,
            kind=asked.kind,
            frames=asked.frames,
            first=first,
            drawings=drawings,
            seeds=range(asked.seed, asked.seed + asked.n),
            progress=tell,
        )
        finished = Finished(model, asked.kind, asked.n, first)
        for row, frame in drawn:
            preview.show(row, finished.add(row, frame))
        return finished.visions()
