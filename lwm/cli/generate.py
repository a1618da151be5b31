"""`lwm generate`: texts, images and videos from text prompts."""

from pathlib import Path
from typing import Annotated

import tyro

from lwm.cli.common import Flat, LoadOptions, Model
from lwm.sampling_params import FrameSampling, SamplingParams, VisionSampling

Prompt = Annotated[str, tyro.conf.Positional]


def generate_text(
    model: Model,
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    *,
    prompts_from: Path | None = None,
    out: Path | None = None,
    writing: Flat[SamplingParams] = SamplingParams(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Continues texts in one batch; a text does not depend on the others.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
        prompts: The texts.
        prompts_from: A file of more prompts: one per line, or JSONL with the field `prompt`.
        out: A JSONL file for prompt, text, ids, logprobs and finish_reason of each, in place of
            the text alone on stdout.
        writing: Length and sampling of the texts.
        load: How the model is loaded.
    """
    from lwm.cli.generate_text import generate

    generate(model, prompts, prompts_from=prompts_from, out=out, writing=writing, load=load)


def generate_image(
    model: Model,
    prompt: Prompt,
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("image.png"),
    n: int = 1,
    grid: bool = False,
    seed: int = 0,
    drawing: Flat[FrameSampling] = FrameSampling(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Generates images from a text.

    Args:
        model: A model with vision ids: a name from `lwm models`, a folder, or a hub's org/name.
        prompt: Describes the image or video.
        out: The image: .png, .jpg or .webp; several are numbered.
        n: Number of images, generated in one batch.
        grid: Write one image with all of them.
        seed: Seed of the first; each next one has the next seed.
        drawing: Guidance and sampling.
        load: How the model is loaded.
    """
    from lwm.cli.generate_vision import draw_files
    from lwm.generate.vision import DrawRequest

    sampling = VisionSampling(image=drawing, video=drawing)
    request = DrawRequest(prompts=(prompt,) * n, sampling=sampling, seed=seed)
    draw_files(model, request, out=out, grid=grid, load=load)


def generate_video(
    model: Model,
    prompt: Prompt,
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("video.mp4"),
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
    """Generates videos from a text, or continues an image or a video.

    Args:
        model: A model with vision ids: a name from `lwm models`, a folder, or a hub's org/name.
        prompt: Describes the image or video.
        out: The video: .mp4, .gif or .webp; several are numbered.
        frames: Frames of each video, those of --image included.
        fps: Frames per second of the file.
        image: An image or a video to continue.
        first_as_image: Generate the first frame from the prompt for an image, as LWM does.
        n: Number of videos, generated in one batch.
        grid: Write one video with all of them.
        seed: Seed of the first; each next one has the next seed.
        sampling: Guidance and sampling of the first frame, and of those after it.
        load: How the model is loaded.
    """
    from lwm.cli.generate_vision import draw_files
    from lwm.generate.vision import DrawRequest

    request = DrawRequest(
        prompts=(prompt,) * n,
        kind="video",
        frames=frames,
        first_as_image=first_as_image,
        sampling=sampling,
        seed=seed,
    )
    draw_files(model, request, image=image, out=out, grid=grid, fps=fps, load=load)
