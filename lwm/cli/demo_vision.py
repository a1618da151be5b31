"""Images and video in `lwm demo`, by a small model in the package."""

import base64
import dataclasses
import tempfile
import time
from pathlib import Path

from lwm.cli.common import LoadOptions, open_model, print_text
from lwm.data.tokenized import CLIPS, FRAMES
from lwm.generate.language_model import LanguageModel
from lwm.sampling_params import VisionSampling
from lwm.tokenizer.message import Vision

MODEL = "tiny-vision"
IMAGE, VIDEO = "birthday cake", "tiger"
CLIP, QUESTION = "1f419.webp", "What is shown in this video?"
_FPS = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """An image of the page, with question and answer."""

    question: str
    source: str
    """A data URI of an image or an animation."""
    answer: str | None
    """None if the image is the answer."""
    num_tokens: int
    """Token ids of the image."""
    seconds: float
    """Time without compilation."""


def show(load: LoadOptions) -> list[Shown]:
    """Generates an image and a clip from text, and answers a question about a clip.

    Raises:
        UserError: The model cannot be opened.
    """
    model = open_model(MODEL, load)
    return [_generated(model, IMAGE, 1), _generated(model, VIDEO, FRAMES), _answered(model)]


def _generated(model: LanguageModel, prompt: str, frames: int) -> Shown:
    what = "an image" if frames == 1 else "a clip"
    print(f"> Generate {what} of: {prompt}")
    for _ in range(2):  # the first one also compiles
        begun = time.monotonic()
        (vision,) = model.draw(prompt, frames=frames, sampling=VisionSampling())
        seconds = time.monotonic() - begun
    print(f"[{frames} frame{'s' * (frames > 1)} in {seconds:.1f} s]\n")
    return Shown(
        question=f"Generate {what} of: {prompt}",
        source=_source(vision),
        answer=None,
        num_tokens=vision.codes.size + frames,
        seconds=seconds,
    )


def _answered(model: LanguageModel) -> Shown:
    print(f"> {QUESTION} [{CLIP}]")
    clip = model.see(CLIPS / CLIP, max_frames=FRAMES)
    for _ in range(2):
        begun = time.monotonic()
        answer = model.chat([QUESTION, clip], max_tokens=32)
        seconds = time.monotonic() - begun
    print_text(f"{answer}\n")
    return Shown(
        question=QUESTION,
        source=_source(clip),
        answer=answer,
        num_tokens=clip.codes.size + len(clip.codes),
        seconds=seconds,
    )


def _source(vision: Vision) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.webp"
        vision.save(file, fps=_FPS)
        return f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"
