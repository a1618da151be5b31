"""`lwm generate image|video`: images and videos from prompts."""

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lwm.cli.common import (
    Flat,
    LoadOptions,
    Model,
    open_model,
    print_line,
    stoppable,
)
from lwm.errors import UserError
from lwm.sampling_params import FrameSampling, VisionSampling

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

    from lwm.generate.language_model import LanguageModel
    from lwm.generate.vision import DrawRequest
    from lwm.media.frames import FrameStream
    from lwm.tokenizer.message import Vision

Prompt = Annotated[str, tyro.conf.Positional]

_IMAGE, _VIDEO = Path("image.png"), Path("video.mp4")
"""Files where --out names none; they are replaced."""


def generate_image(
    model: Model,
    prompt: Prompt,
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = _IMAGE,
    overwrite: bool = False,
    n: int = 1,
    grid: bool = False,
    seed: int = 0,
    sampling: Flat[FrameSampling] = FrameSampling(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Generates images from a text.

    Args:
        model: A vision model: a name from `lwm models`, a folder, or a hub's org/name.
        prompt: The text.
        out: The image: .png, .jpg or .webp; several are numbered.
        overwrite: Replace a file named by --out.
        n: Number of images, generated in one batch.
        grid: Write one image with all of them.
        seed: Seed of the first image; it counts up for the others.
        sampling: How the codes are sampled.
        load: How the model is loaded.
    """
    from lwm.generate.vision import DrawRequest

    both = VisionSampling(image=sampling, video=sampling)
    request = DrawRequest(prompts=(prompt,) * n, sampling=both, seed=seed)
    overwrite |= out == _IMAGE
    generate_files(model, request, out=out, overwrite=overwrite, grid=grid, load=load)


def generate_video(
    model: Model,
    prompt: Prompt,
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = _VIDEO,
    overwrite: bool = False,
    frames: int = 8,
    fps: float = 4.0,
    image: Path | None = None,
    first_as_image: bool = False,
    n: int = 1,
    grid: bool = False,
    seed: int = 0,
    sampling: Annotated[VisionSampling, tyro.conf.arg(name="")] = VisionSampling(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Generates videos from a text, optionally continuing an image or a video.

    Args:
        model: A vision model: a name from `lwm models`, a folder, or a hub's org/name.
        prompt: The text.
        out: The video: .mp4, .gif or .webp; several are numbered.
        overwrite: Replace a file named by --out.
        frames: Number of frames, those of --image included.
        fps: Frames per second.
        image: An image or a video to continue.
        first_as_image: Generate the first frame with the prompt for an image, as LWM does.
        n: Number of videos, generated in one batch.
        grid: Write one video with all of them.
        seed: Seed of the first video; it counts up for the others.
        sampling: How the codes are sampled.
        load: How the model is loaded.
    """
    from lwm.generate.vision import DrawRequest

    request = DrawRequest(
        prompts=(prompt,) * n,
        kind="video",
        frames=frames,
        first_as_image=first_as_image,
        sampling=sampling,
        seed=seed,
    )
    overwrite |= out == _VIDEO
    generate_files(
        model, request, image=image, out=out, overwrite=overwrite, grid=grid, fps=fps, load=load
    )


def generate_files(
    name: str,
    request: "DrawRequest",
    *,
    image: Path | None = None,
    out: Path,
    overwrite: bool = False,
    grid: bool,
    load: LoadOptions,
    fps: float = 1.0,
) -> None:
    """Generates images or videos, and prints the paths of the files.

    Args:
        name: The model.
        request: The images or videos to generate.
        image: An image or a video that each continues.
        out: The file, numbered if there are several.
        overwrite: Replaces files that exist.
        grid: Writes one file with all of them.
        load: How the model is loaded.
        fps: Frames per second of a video.

    Raises:
        UserError: The model cannot generate images, or the files cannot be written; the latter is
            found before anything is generated.
    """
    import numpy as np

    from lwm.media.write import contact_sheet

    if not request.prompts:
        raise UserError("n must be at least 1")
    if image is not None and request.first_as_image:
        raise UserError("give --image or --first-as-image: either is the first frame")
    files = _files(request, out, grid=grid, overwrite=overwrite)
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
    written: list[Path] = []
    try:
        # A reader of the paths may close the pipe after the first; by then all are written.
        for file, shown in zip(files, pixels, strict=True):
            _write(request, file, shown, fps)
            written.append(file)
    finally:
        for file in written:
            print_line(file)


def _files(request: "DrawRequest", out: Path, *, grid: bool, overwrite: bool) -> list[Path]:
    """Returns the files to write."""
    from lwm.files import require_absent, require_writable
    from lwm.media.write import IMAGES, VIDEOS

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
        require_absent(file, overwrite=overwrite)
    return files


def _try(request: "DrawRequest", out: Path, fps: float) -> None:
    """Writes a small file and deletes it, so that a bad file name fails before generation."""
    import numpy as np

    from lwm.files import reading

    with reading(out, "written"), tempfile.TemporaryDirectory(dir=out.parent) as folder:
        _write(request, Path(folder) / out.name, np.zeros((1, 16, 16, 3), np.uint8), fps)


def _write(
    request: "DrawRequest", file: Path, pixels: "UInt8[np.ndarray, 'N R C 3']", fps: float
) -> None:
    from lwm.media.write import write_image, write_video

    if request.kind == "image":
        write_image(file, pixels[0])
    else:
        write_video(file, pixels, fps)


def _first(model: "LanguageModel", image: Path, request: "DrawRequest") -> "Vision":
    """Reads the image or video to continue, which must have fewer frames than the request."""

    def require_fewer(frames: "FrameStream") -> None:
        if frames.count >= request.frames:
            raise UserError(
                f"{image} has {frames.count:,} of {request.frames} --frames; ask for more than "
                "that, or give fewer"
            )

    # Checked before they are encoded, which takes longer.
    return model.see(image, max_frames=request.frames, check=require_fewer)


def _generate(model: "LanguageModel", request: "DrawRequest") -> "list[Vision]":
    """Generates images or videos, and previews each frame."""
    from lwm.console import Preview
    from lwm.generate.output import FrameCollector
    from lwm.generate.vision import generate_frames

    count = len(request.prompts)
    preview = Preview(count)
    with stoppable("generating", "ids", console=preview.console) as progress:
        collector = FrameCollector(model, request.kind, count, request.first)
        for row, frame in generate_frames(model, request, progress=progress):
            preview.show(row, collector.add(row, frame))
        return collector.visions()
