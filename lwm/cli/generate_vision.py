"""Body of `lwm generate image` and `lwm generate video`: previews frames, and writes files."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from lwm.cli.common import LoadOptions, open_model
from lwm.console import Interruptible, Preview, waiting
from lwm.errors import UserError
from lwm.files import reading, require_writable
from lwm.generate.language_model import LanguageModel
from lwm.generate.output import FrameCollector
from lwm.generate.vision import DrawRequest, generate_frames
from lwm.media.frames import Frames
from lwm.media.write import IMAGES, VIDEOS, contact_sheet, write_image, write_video
from lwm.tokenizer.message import Vision


def draw_files(
    name: str,
    request: DrawRequest,
    *,
    image: Path | None = None,
    out: Path,
    grid: bool,
    load: LoadOptions,
    fps: float = 1.0,
) -> None:
    """Generates images or videos, and prints the paths of the files.

    Args:
        name: The model.
        request: What to generate.
        image: An image or a video that each continues.
        out: The file, numbered if there are several.
        grid: Writes one file with all of them.
        load: How the model is loaded.
        fps: Frames per second of a video.

    Raises:
        UserError: The model cannot generate images, or the files cannot be written; the latter is
            found before anything is generated.
    """
    if not request.prompts:
        raise UserError("n 0 must be at least 1")
    if image is not None and request.first_as_image:
        raise UserError("give --image or --first-as-image: either is the first frame")
    files = _files(request, out, grid=grid)
    _try(request, out, fps)
    model = open_model(name, load)
    if image is not None:
        first = (_first(model, image, request),) * len(request.prompts)
        request = dataclasses.replace(request, first=first)
    visions = _generate(model, request)
    pixels = [vision.pixels for vision in visions if vision.pixels is not None]
    if grid:
        columns = int(np.ceil(np.sqrt(len(pixels))))
        pixels = [np.stack([contact_sheet(list(at), columns) for at in zip(*pixels, strict=True)])]
    # A reader of the paths may close the pipe after the first; by then all are written.
    for file, shown in zip(files, pixels, strict=True):
        _write(request, file, shown, fps)
    for file in files:
        print(file)


def _files(request: DrawRequest, out: Path, *, grid: bool) -> list[Path]:
    """Returns the files to write."""
    known = IMAGES if request.kind == "image" else VIDEOS
    if out.suffix.lower() not in known:
        raise UserError(f"{out} ends in none of {', '.join(known)}")
    files = [out]
    count = len(request.prompts)
    if count > 1 and not grid:
        width = len(str(count))
        files = [out.with_stem(f"{out.stem}-{i:0{width}}") for i in range(1, count + 1)]
    for file in files:
        require_writable(file)
    return files


def _try(request: DrawRequest, out: Path, fps: float) -> None:
    """Writes a small file and deletes it, so that a bad file name fails before generation."""
    with reading(out, "written"), tempfile.TemporaryDirectory(dir=out.parent) as folder:
        _write(request, Path(folder) / out.name, np.zeros((1, 16, 16, 3), np.uint8), fps)


def _write(
    request: DrawRequest, file: Path, pixels: UInt8[np.ndarray, "N R C 3"], fps: float
) -> None:
    if request.kind == "image":
        write_image(file, pixels[0])
    else:
        write_video(file, pixels, fps)


def _first(model: LanguageModel, image: Path, request: DrawRequest) -> Vision:
    """Reads the frames to continue, all of them, if there are fewer than are request for."""

    def require_fewer(frames: Frames) -> None:
        if frames.count >= request.frames:
            raise UserError(
                f"{image} has {frames.count:,} of {request.frames} --frames; ask for more than "
                "that, or give fewer"
            )

    # Checked before they are encoded, which takes longer.
    return model.see(image, max_frames=request.frames, check=require_fewer)


def _generate(model: LanguageModel, request: DrawRequest) -> list[Vision]:
    """Generates images or videos, and previews each frame."""
    count = len(request.prompts)
    preview = Preview(count)
    with Interruptible() as user, waiting("generating", "ids", console=preview.console) as report:

        def progress(done: int, total: int) -> None:
            report(done, total)
            user.check()

        collector = FrameCollector(model, request.kind, count, request.first)
        for row, frame in generate_frames(model, request, progress=progress):
            preview.show(row, collector.add(row, frame))
        return collector.visions()
