"""`lwm generate image|video`: images and videos from prompts."""

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

Prompts = Annotated[tuple[str, ...], tyro.conf.Positional]

_IMAGE, _VIDEO = Path("image.png"), Path("video.mp4")
"""Files where --out names none; they are replaced."""
_MOST_UPSCALE = 64


def generate_image(
    model: Model,
    prompts: Prompts = (),
    /,
    *,
    prompts_from: Path | None = None,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = _IMAGE,
    overwrite: bool = False,
    n: int = 1,
    grid: bool = False,
    upscale: int = 1,
    seed: int = 0,
    sampling: Flat[FrameSampling] = FrameSampling(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Generates images from texts, all together.

    Args:
        model: A vision model: a name from `lwm models`, a folder, or a hub's org/name.
        prompts: The texts.
        prompts_from: A file of more: one text per line, or JSONL (.jsonl, .ndjson, .json) with a
            text `prompt` in each line.
        out: The image: .png, .jpg or .webp; several are numbered, those of the first text first.
            Each holds its prompt, seed and settings.
        overwrite: Replace a file named by --out.
        n: Number of images of each text.
        grid: Write one image with all of them.
        upscale: Side of the square that each pixel becomes.
        seed: Seed of the first image of each text; it counts up for the others.
        sampling: How the codes are sampled.
        load: How the model is loaded.
    """
    from lwm.generate.vision import DrawRequest

    both = VisionSampling(image=sampling, video=sampling)
    texts, seeds = _each(_texts(prompts, prompts_from), n, seed)
    request = DrawRequest(prompts=texts, seeds=seeds, sampling=both)
    output = Output(out=out, overwrite=overwrite or out == _IMAGE, grid=grid, upscale=upscale)
    generate_files(model, request, output, load=load)


def generate_video(
    model: Model,
    prompts: Prompts = (),
    /,
    *,
    prompts_from: Path | None = None,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = _VIDEO,
    overwrite: bool = False,
    frames: int = 8,
    fps: float = 4.0,
    image: Path | None = None,
    first_as_image: bool = False,
    n: int = 1,
    grid: bool = False,
    upscale: int = 1,
    seed: int = 0,
    sampling: Annotated[VisionSampling, tyro.conf.arg(name="")] = VisionSampling(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Generates videos from texts, all together, optionally continuing an image or a video.

    Args:
        model: A vision model: a name from `lwm models`, a folder, or a hub's org/name.
        prompts: The texts.
        prompts_from: A file of more: one text per line, or JSONL (.jsonl, .ndjson, .json) with a
            text `prompt` in each line.
        out: The video: .mp4, .gif or .webp; several are numbered, those of the first text first.
            Each holds its prompt, seed and settings.
        overwrite: Replace a file named by --out.
        frames: Number of frames, those of --image included.
        fps: Frames per second.
        image: An image or a video to continue.
        first_as_image: Generate the first frame with the prompt for an image, as LWM does.
        n: Number of videos of each text.
        grid: Write one video with all of them.
        upscale: Side of the square that each pixel becomes.
        seed: Seed of the first video of each text; it counts up for the others.
        sampling: How the codes are sampled.
        load: How the model is loaded.
    """
    from lwm.generate.vision import DrawRequest

    texts, seeds = _each(_texts(prompts, prompts_from), n, seed)
    request = DrawRequest(
        prompts=texts,
        seeds=seeds,
        kind="video",
        frames=frames,
        first_as_image=first_as_image,
        sampling=sampling,
    )
    overwrite |= out == _VIDEO
    output = Output(out=out, overwrite=overwrite, grid=grid, upscale=upscale, fps=fps)
    generate_files(model, request, output, image=image, load=load)


def _texts(prompts: tuple[str, ...], prompts_from: Path | None) -> list[str]:
    """Returns the prompts that are given, and those of a file.

    Raises:
        UserError: There is none, or one is a chat.
    """
    from lwm.data.prompts import read_prompts

    read = read_prompts(prompts_from) if prompts_from else []
    for each in read:
        if not isinstance(each.content, str):
            raise UserError(f'{each.place}: a chat describes no image; give a text "prompt"')
    if not prompts and not read:
        raise UserError("there is no prompt; give some, or --prompts-from FILE")
    return [*prompts, *(str(each.content) for each in read)]


def _each(texts: Sequence[str], n: int, seed: int) -> tuple[list[str], list[int]]:
    """Returns each text `n` times, and the seeds, which begin anew with each text."""
    if n < 1:
        raise UserError(f"n {n} must be at least 1")
    return [text for text in texts for _ in range(n)], [*range(seed, seed + n)] * len(texts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Files of images or videos."""

    out: Path
    """The file, numbered if there are several."""
    overwrite: bool = False
    """Replaces files that exist."""
    grid: bool = False
    """Writes one file with all of them."""
    upscale: int = 1
    """Side of the square that each pixel becomes."""
    fps: float = 1.0
    """Frames per second of a video."""


def generate_files(
    name: str,
    request: "DrawRequest",
    output: Output,
    *,
    image: Path | None = None,
    load: LoadOptions,
) -> None:
    """Generates images or videos, and prints the paths of the files.

    Args:
        name: The model.
        request: The images or videos to generate.
        output: The files.
        image: An image or a video that each continues.
        load: How the model is loaded.

    Raises:
        UserError: The model cannot generate images, or the files cannot be written; the latter is
            found before anything is generated.
    """
    if not 1 <= output.upscale <= _MOST_UPSCALE:
        raise UserError(f"upscale {output.upscale} must be from 1 to {_MOST_UPSCALE}")
    if image is not None and request.first_as_image:
        raise UserError("give --image or --first-as-image: either is the first frame")
    files = _files(request, output)
    _try(request, output)
    model = open_model(name, load)
    if image is not None:
        first = (_first(model, image, request),) * len(request.prompts)
        request = dataclasses.replace(request, first=first)
    pixels = [vision.pixels for vision in _generate(model, request) if vision.pixels is not None]
    notes = [_note(model, request, number) for number in range(len(pixels))]
    if output.grid:
        pixels, notes = [_sheets(pixels)], ["\n".join(notes)]
    written: list[Path] = []
    try:
        # A reader of the paths may close the pipe after the first; by then all are written.
        for file, shown, note in zip(files, pixels, notes, strict=True):
            _write(request, output, file, shown, note)
            written.append(file)
    finally:
        for file in written:
            print_line(file)


def _files(request: "DrawRequest", output: Output) -> list[Path]:
    """Returns the files to write."""
    from lwm.files import require_absent, require_writable
    from lwm.media.write import IMAGES, VIDEOS

    out, known = output.out, IMAGES if request.kind == "image" else VIDEOS
    if out.suffix.lower() not in known:
        raise UserError(f"{out} ends in none of {', '.join(known)}")
    files = [out]
    count = len(request.prompts)
    if count > 1 and not output.grid:
        width = len(str(count))
        files = [out.with_stem(f"{out.stem}-{i:0{width}}") for i in range(1, count + 1)]
    for file in files:
        require_writable(file)
        require_absent(file, overwrite=output.overwrite)
    return files


def _try(request: "DrawRequest", output: Output) -> None:
    """Writes a small file and deletes it, so that a bad file name fails before generation."""
    import numpy as np

    from lwm.files import reading

    out = output.out
    with reading(out, "written"), tempfile.TemporaryDirectory(dir=out.parent) as folder:
        _write(request, output, Path(folder) / out.name, np.zeros((1, 16, 16, 3), np.uint8), "")


def _sheets(pixels: "Sequence[UInt8[np.ndarray, 'N R C 3']]") -> "UInt8[np.ndarray, 'N r c 3']":
    """Returns frames that show all images or videos in a square."""
    import numpy as np

    from lwm.media.write import contact_sheet

    columns = math.ceil(math.sqrt(len(pixels)))
    return np.stack([contact_sheet(list(at), columns) for at in zip(*pixels, strict=True)])


def _note(model: "LanguageModel", request: "DrawRequest", number: int) -> str:
    """Returns the text of a file: prompt, seed and settings, as JSON."""
    from lwm.media.text import note

    sampling = request.used(model.sampling)
    settings: dict[str, Any] = dict(sampling.image.used())
    if request.kind == "video":
        settings |= {"frames": request.frames, "video": sampling.video.used()}
    prompt, seed = request.prompts[number], request.seed_of(number)
    return note(model=model.name, seed=seed, prompt=prompt, **settings)


def _write(
    request: "DrawRequest",
    output: Output,
    file: Path,
    pixels: "UInt8[np.ndarray, 'N R C 3']",
    note: str,
) -> None:
    from lwm.media.write import write_image, write_video

    # Nearest, so that no detail is invented.
    pixels = pixels.repeat(output.upscale, axis=1).repeat(output.upscale, axis=2)
    if request.kind == "image":
        write_image(file, pixels[0], text=note)
    else:
        write_video(file, pixels, output.fps, text=note)


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
