"""`lwm generate`: texts, images and videos from words. Free of JAX until it runs."""

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
    """Continues texts; several are written together, each as if it were alone.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
        prompts: The texts.
        prompts_from: A file of more: a text a line, or JSONL with the field `prompt`.
        out: A JSONL file for prompt, text, ids, logprobs and finish_reason of each, in place of
            the text alone on stdout.
        writing: How the texts are written.
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
    """Draws images of what a text says.

    Args:
        model: A model that sees: a name from `lwm models`, a folder, or a hub's org/name.
        prompt: What is to be seen.
        out: The image: .png, .jpg or .webp; several are numbered.
        n: How many, drawn together.
        grid: Lay them out on one image instead.
        seed: Of the first; the second has the next one, and so on, each as if it were alone.
        drawing: How they are drawn.
        load: How the model is loaded.
    """
    from lwm.cli.generate_vision import DrawRequest, draw_files

    asked = DrawRequest(prompt=prompt, kind="image", n=n, seed=seed)
    drawings = VisionSampling(image=drawing, video=drawing)
    draw_files(model, asked, out=out, grid=grid, drawings=drawings, load=load)


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
    drawings: Annotated[VisionSampling, tyro.conf.arg(name="")] = VisionSampling(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Draws videos of what a text says, perhaps going on from an image.

    Args:
        model: A model that sees: a name from `lwm models`, a folder, or a hub's org/name.
        prompt: What is to be seen.
        out: The video: .mp4, .gif or .webp; several are numbered.
        frames: How many, those that are given included.
        fps: How many are shown in a second.
        image: An image, or a video, that it goes on from.
        first_as_image: Draw the first frame from the prompt for an image, as LWM does, then go on.
        n: How many videos, drawn together.
        grid: Lay them out on one video instead.
        seed: Of the first; the second has the next one, and so on, each as if it were alone.
        drawings: How the first frame is drawn, and those after it.
        load: How the model is loaded.
    """
    from lwm.cli.generate_vision import DrawRequest, draw_files

    asked = DrawRequest(
        prompt=prompt,
        kind="video",
        frames=frames,
        first=image,
        first_as_image=first_as_image,
        n=n,
        seed=seed,
    )
    draw_files(model, asked, out=out, grid=grid, fps=fps, drawings=drawings, load=load)
