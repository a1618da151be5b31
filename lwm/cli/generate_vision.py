"""What `lwm generate image` and `lwm generate video` do: draw, show on the way, and write files."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from lwm.cli.common import LoadOptions, open_model
from lwm.console import Interruptible, Preview, waiting
from lwm.errors import UserError
from lwm.files import reading, require_writable
from lwm.generate.language_model import LanguageModel
from lwm.generate.vision import FrameCollector, draw
from lwm.media.frames import Frames
from lwm.media.write import IMAGES, VIDEOS, contact_sheet, write_image, write_video
from lwm.sampling_params import VisionSampling
from lwm.tokenizer.message import Vision


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawRequest:
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
            raise UserError(f"seed {self.seed} must be from 0 to {2**32 - self.n}")
        if self.first is not None and self.first_as_image:
            raise UserError("give --image or --first-as-image: either says what comes first")
        if self.first_as_image and self.frames < 2:
            raise UserError("--first-as-image needs at least 2 --frames")

    def require_more(self, given: Frames) -> None:
        """Refuses an image or video after which nothing is left to draw.

        Raises:
            UserError: How many frames it has.
        """
        if given.count >= self.frames:
            raise UserError(
                f"{self.first} has {given.count:,} of {self.frames} --frames; ask for more than "
                "that, or give fewer"
            )


def draw_files(
    name: str,
    asked: DrawRequest,
    *,
    out: Path,
    grid: bool,
    drawings: VisionSampling,
    load: LoadOptions,
    fps: float = 1.0,
) -> None:
    """Draws, and prints the paths of what it wrote.

    Raises:
        UserError: The model cannot draw, or the files cannot be written; the latter is found out
            before anything is drawn.
    """
    files = _files(asked, out, grid=grid)
    _try(asked, out, fps)
    model = open_model(name, load)
    found = _drawn(model, asked, drawings)
    pixels = [vision.pixels for vision in found if vision.pixels is not None]
    if grid:
        columns = int(np.ceil(np.sqrt(len(pixels))))
        pixels = [np.stack([contact_sheet(list(at), columns) for at in zip(*pixels, strict=True)])]
    # Whoever reads the paths may leave after the first; the others are written then.
    for file, shown in zip(files, pixels, strict=True):
        _write(asked, file, shown, fps)
    for file in files:
        print(file)


def _files(asked: DrawRequest, out: Path, *, grid: bool) -> list[Path]:
    """Returns the files to write, if their names will do."""
    known = IMAGES if asked.kind == "image" else VIDEOS
    if out.suffix.lower() not in known:
        raise UserError(f"{out} ends in none of {', '.join(known)}")
    files = [out]
    if asked.n > 1 and not grid:
        width = len(str(asked.n))
        files = [out.with_stem(f"{out.stem}-{i:0{width}}") for i in range(1, asked.n + 1)]
    for file in files:
        require_writable(file)
    return files


def _try(asked: DrawRequest, out: Path, fps: float) -> None:
    """Writes a small file and takes it away: what would fail after the drawing fails now."""
    with reading(out, "written"), tempfile.TemporaryDirectory(dir=out.parent) as folder:
        _write(asked, Path(folder) / out.name, np.zeros((1, 16, 16, 3), np.uint8), fps)


def _write(
    asked: DrawRequest, file: Path, pixels: UInt8[np.ndarray, "N R C 3"], fps: float
) -> None:
    if asked.kind == "image":
        write_image(file, pixels[0])
    else:
        write_video(file, pixels, fps)


def _drawn(model: LanguageModel, asked: DrawRequest, drawings: VisionSampling) -> list[Vision]:
    first: list[Vision] | None = None
    if asked.first is not None:
        # All its frames, of which there must be fewer: a film is never encoded to be refused.
        seen = model.see(asked.first, max_frames=asked.frames, check=asked.require_more)
        first = [seen] * asked.n
    if asked.first_as_image:
        image = dataclasses.replace(asked, kind="image", frames=1, first_as_image=False)
        first = _finished(model, image, drawings, None)
    return _finished(model, asked, drawings, first)


def _finished(
    model: LanguageModel,
    asked: DrawRequest,
    drawings: VisionSampling,
    first: Sequence[Vision] | None,
) -> list[Vision]:
    """Draws, and shows each frame when it is done."""
    preview = Preview(asked.n)
    with Interruptible() as user, waiting("drawing", "ids", console=preview.console) as tell:

        def progress(done: int, total: int) -> None:
            tell(done, total)
            user.check()

        drawn = draw(
            model,
            [asked.prompt] * asked.n,
            kind=asked.kind,
            frames=asked.frames,
            first=first,
            drawings=drawings,
            seeds=range(asked.seed, asked.seed + asked.n),
            progress=progress,
        )
        finished = FrameCollector(model, asked.kind, asked.n, first)
        for row, frame in drawn:
            preview.show(row, finished.add(row, frame))
        return finished.visions()
