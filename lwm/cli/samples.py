"""Samples of a model while it is trained: texts that it continues, or images that it draws."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax

from lwm.errors import UserError
from lwm.files import make_folder, write_bytes
from lwm.formats.run_folder import TOKENIZER
from lwm.generate.language_model import LanguageModel
from lwm.generate.vision import DrawRequest, generate_visions
from lwm.media.write import contact_sheet, write_image
from lwm.model.llama import Llama
from lwm.sampling_params import LWM_SAMPLING
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.train.config import Run
from lwm.vqgan.checkpoint import locate_vqgan

FOLDER = "samples"
_TOKENS = 64
"""Tokens of a text."""


class Samples:
    """Writes samples of the same prompts at each validation of a run."""

    def __init__(self, prompts: Sequence[str]):
        """Takes the prompts."""
        self._prompts = tuple(prompts)

    def __call__(self, folder: Path, config: Run, number: int, llama: Llama) -> None:
        """Writes `samples/NUMBER.md`, or `samples/NUMBER.png` with an image of each prompt.

        What keeps a model from answering is written in place of its answers.
        """
        vqgan = config.data.vqgan
        model = LanguageModel(
            name=f"update {number}",
            llama=llama,
            tokenizer=Tokenizer.open(folder / TOKENIZER),
            mesh=jax.sharding.get_mesh(),
            sampling=config.sampling.over(LWM_SAMPLING),
            vqgan_file=None if vqgan is None else locate_vqgan(vqgan),
        )
        make_folder(folder / FOLDER)
        place = folder / FOLDER / f"{number:06}"
        try:
            self._draw(model, place) if model.sees else self._write(model, place)
        except UserError as error:
            write_bytes(place.with_suffix(".md"), f"{error}\n".encode())
        finally:
            model.engine.close()

    def _write(self, model: LanguageModel, place: Path) -> None:
        texts = model.generate(self._prompts, max_tokens=_TOKENS)
        pairs = zip(self._prompts, texts, strict=True)
        parts = [f"**{prompt}**{text}" for prompt, text in pairs]
        write_bytes(place.with_suffix(".md"), ("\n\n---\n\n".join(parts) + "\n").encode())

    def _draw(self, model: LanguageModel, place: Path) -> None:
        request = DrawRequest(prompts=self._prompts, seeds=[0] * len(self._prompts))
        pixels = [
            each.pixels[0] for each in generate_visions(model, request) if each.pixels is not None
        ]
        sheet = contact_sheet(pixels, math.ceil(math.sqrt(len(pixels))))
        write_image(place.with_suffix(".png"), sheet, text="\n".join(self._prompts))
