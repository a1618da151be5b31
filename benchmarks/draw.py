"""Times `tiny-vision` drawing an image and a clip beside transformers on the same weights.

    python benchmarks/draw.py

Both write the same number of ids with guidance, in turn, after one round that is not counted; each
time of lwm's includes the pixels, of which transformers knows nothing. Medians are reported.
"""

import dataclasses
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import tyro
from attention import versions

import lwm
from lwm.convert.export import save_model
from lwm.data import captions
from lwm.tokenizer.template import render_chat

PROMPT, FRAMES = "birthday cake", 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to time, and the folder of the table."""

    model: str = "tiny-vision"
    rounds: int = 5
    results: Path = Path(__file__).parent / "results"


def of_lwm(model: lwm.LanguageModel, frames: int) -> Callable[[], object]:
    return lambda: model.draw(PROMPT, frames=frames)


def of_transformers(model: lwm.LanguageModel, folder: Path, frames: int) -> Callable[[], object]:
    import torch
    from transformers import LlamaForCausalLM

    theirs: Any = LlamaForCausalLM.from_pretrained(folder).eval()
    kind = "video" if frames > 1 else "image"
    ids = render_chat([captions.request(PROMPT, kind)], model.tokenizer, marks=model.marks)
    prompt = torch.tensor([[*ids, *model.marks.opening]])
    bos = [] if model.tokenizer.bos_id is None else [model.tokenizer.bos_id]
    without = torch.tensor([[*bos, *model.marks.opening]])
    count = frames * (model.vision.tokens_per_frame + 1)

    def write() -> object:
        with torch.inference_mode():
            return theirs.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                negative_prompt_ids=without,
                negative_prompt_attention_mask=torch.ones_like(without),
                guidance_scale=5.0,
                do_sample=True,
                top_k=0,
                min_new_tokens=count,
                max_new_tokens=count,
            )

    return write


def main(config: Benchmark) -> None:
    model = lwm.load(config.model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_model(model.llama, model.tokenizer, folder)
        tasks: dict[tuple[str, int], Callable[[], object]] = {}
        for frames in (1, FRAMES):
            tasks["lwm", frames] = of_lwm(model, frames)
            if find_spec("torch"):
                tasks["transformers", frames] = of_transformers(model, folder, frames)
        for task in tasks.values():
            task()
        seconds: dict[tuple[str, int], list[float]] = {each: [] for each in tasks}
        for _ in range(config.rounds):
            for each, task in tasks.items():
                begun = time.perf_counter()
                task()
                seconds[each].append(time.perf_counter() - begun)
    table = ["| | image, 65 ids | clip of 4 frames, 260 ids |", "|---|---|---|"]
    for library in dict.fromkeys(library for library, _ in tasks):
        cells = (f"{statistics.median(seconds[library, frames]):.2f} s" for frames in (1, FRAMES))
        table.append(f"| {library} | {' | '.join(cells)} |")
    heading = (
        f"{config.model} drawing with guidance, fp32, {jax.device_count()} "
        f"{jax.devices()[0].device_kind} device, {versions('torch', 'transformers')}"
    )
    day = datetime.date.today().isoformat()
    text = "\n".join([f"# Drawing, {day}", "", f"{heading}.", "", *table, ""])
    print(text)
    config.results.mkdir(exist_ok=True)
    (config.results / f"draw-{jax.default_backend()}-{day}.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
