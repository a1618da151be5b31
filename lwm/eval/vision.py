"""Text to image, image to text and teacher-forced code accuracy on captioned media."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lwm.data.captions import ASK, request
from lwm.data.chat import chat_ids
from lwm.data.example import Example
from lwm.data.media.world import is_world
from lwm.data.pack import PackingConfig
from lwm.data.sets import open_records, require_codes_of
from lwm.data.sources import files_of
from lwm.errors import UserError, several
from lwm.eval.answer import describe_model, model_fingerprints
from lwm.eval.question import GREEDY
from lwm.files import make_folder, write_bytes
from lwm.fingerprint import fingerprints, named
from lwm.generate.grammar import TEXT_ONLY
from lwm.generate.language_model import LanguageModel
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.vision import DrawRequest, generate_visions
from lwm.generate.work import Work, Written
from lwm.progress import Progress
from lwm.sampling_params import VisionSampling
from lwm.tokenizer.message import Message, Vision
from lwm.tokenizer.template import render_chat
from lwm.train.validate import HeldOut

REPORT = "report.json"
GENERATED, CAPTIONED = "drawn", "told"
"""Keys of the report: right results from text to image, and from image to text."""
_BATCH = 16
_CAPTION_TOKENS = 48


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image or a video with its caption."""

    caption: str
    vision: Vision


def read_pairs(
    files: Sequence[str], *, count: int | None = None, tokens_per_frame: int | None = None
) -> list[Pair]:
    """Reads records with a caption and codes.

    Args:
        files: See `open_records`.
        count: The largest number of pairs, taken evenly over the set; None is all.
        tokens_per_frame: Codes of a frame, for records without a number of frames.

    Raises:
        UserError: A record has no caption or no codes, or there is no record.
    """
    source = open_records(files)
    number = len(source) if count is None else min(count, len(source))
    records = [source[int(i)] for i in np.linspace(0, len(source) - 1, number)]
    pairs = []
    for record in records:
        caption = record.value.get("caption")
        if isinstance(caption, list) and caption:
            caption = caption[0]
        if not isinstance(caption, str) or record.value.get("vision") is None:
            remedy = "; leave text out of its name" if any(map(is_world, several(files))) else ""
            raise UserError(
                f"{record.name}: it should have a 'caption' and codes under 'vision'{remedy}"
            )
        pairs.append(Pair(caption, Vision.of(record.value, tokens_per_frame=tokens_per_frame)))
    if len({pair.vision.codes.shape for pair in pairs}) > 1:
        raise UserError(
            "the records differ in their number of frames; tokenize them with the same --max-frames"
        )
    return pairs


def measure(
    model: LanguageModel, pairs: Sequence[Pair], *, progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Evaluates a model on pairs of images or videos and captions.

    Returns:
        `codes_accuracy`: the share of codes with the highest probability, given the caption and
        all codes before. `drawn`: the number of captions whose greedy codes match their own pair
        better than any other of these pairs. `told`: the number of images or videos whose greedy
        caption is right. `rows`: the results of each pair.

    Raises:
        UserError: The frames do not fit the model or its context.
    """
    for pair in pairs:
        model.require_frames(pair.vision)
    total = 2 * len(pairs)
    generated: list[np.ndarray] = []
    captions: list[str] = []
    for start in range(0, len(pairs), _BATCH):
        batch = pairs[start : start + _BATCH]
        generated += [vision.codes for vision in _generate(model, batch)]
        captions += _caption(model, batch)
        progress(2 * len(generated), total)
    known = np.stack([pair.vision.codes for pair in pairs])
    nearest = [int(np.argmax((known == codes).mean(axis=(1, 2)))) for codes in generated]
    return {
        "pairs": len(pairs),
        "codes_accuracy": _accuracy(model, pairs),
        GENERATED: sum(near == number for number, near in enumerate(nearest)),
        CAPTIONED: sum(text == pair.caption for text, pair in zip(captions, pairs, strict=True)),
        "rows": [
            {
                "caption": pair.caption,
                "nearest": pairs[near].caption,
                "overlap": float((known[number] == generated[number]).mean()),
                CAPTIONED: text,
            }
            for number, (pair, near, text) in enumerate(zip(pairs, nearest, captions, strict=True))
        ],
    }


def _generate(model: LanguageModel, pairs: Sequence[Pair]) -> list[Vision]:
    request = DrawRequest(
        prompts=tuple(pair.caption for pair in pairs),
        kind=pairs[0].vision.kind,
        frames=len(pairs[0].vision.codes),
        sampling=VisionSampling(image=GREEDY, video=GREEDY),
    )
    return generate_visions(model, request)


def _caption(model: LanguageModel, pairs: Sequence[Pair]) -> list[str]:
    """Returns the greedy captions of a batch."""
    runs = [
        render_chat(
            [Message("user", (ASK[pair.vision.kind], pair.vision))],
            model.tokenizer,
            template=model.template,
            marks=model.marks,
        )
        for pair in pairs
    ]
    model.require_fit(max(map(len, runs)), _CAPTION_TOKENS)
    state = model.grammar.start([TEXT_ONLY], room=_CAPTION_TOKENS)
    plan = GenerationPlan(
        max_tokens=_CAPTION_TOKENS,
        stop_ids=model.tokenizer.eos_ids,
        vision=VisionPlan(state=state),
    )
    lane = model.lane(len(runs))
    requests = [Work(plan=plan).request(ids, lane=lane) for ids in runs]
    written: list[list[int]] = [[] for _ in runs]
    for row, event in model.engine.gather(requests):
        if isinstance(event, Written):
            written[row] += event.ids
    return [model.tokenizer.decode(ids).strip() for ids in written]


def _accuracy(model: LanguageModel, pairs: Sequence[Pair]) -> float:
    """Returns the share of codes with the highest probability, given all ids before."""
    examples = []
    for pair in pairs:
        asked = request(pair.caption, pair.vision.kind)
        turns = [asked, Message("assistant", (pair.vision,))]
        ids, learn = chat_ids(turns, model.tokenizer, template=model.template, marks=model.marks)
        tokens = model.marks.tokens
        learn &= (ids >= tokens.text) & (ids < tokens.end_of_frame)  # ends follow from the place
        examples.append(Example(ids=ids, loss_mask=learn, name=pair.caption))
    length = max(128, 1 << (max(map(len, examples)) - 1).bit_length())
    rows = HeldOut.read(
        examples,
        PackingConfig(length=length),
        model.marks.tokens,
        most=len(examples),
        num_rows=4,
        layout="contiguous",
    )
    with jax.set_mesh(model.mesh):
        return rows.measure(model.llama, model.mesh)["vision_accuracy"]


def evaluate(
    model: LanguageModel,
    files: Sequence[str],
    out: Path,
    *,
    count: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Measures a model on captioned images or videos and writes `report.json`.

    Args:
        model: A model that reads and writes images.
        files: See `open_records`.
        out: The folder for the report.
        count: The largest number of pairs; None is all.
        progress: Called with the number of answers done and their total.

    Returns:
        The values of `measure`.

    Raises:
        UserError: The folder cannot be written, or the pairs cannot be read or do not fit.
    """
    make_folder(out)
    require_codes_of(files, lambda: model.vision.vqgan)
    pairs = read_pairs(files, count=count, tokens_per_frame=model.vision.tokens_per_frame)
    made_from = {
        "model": model_fingerprints(model),
        "files": fingerprints(named(files_of(open_records(files)))),
    }
    found = measure(model, pairs, progress=progress)
    about = {"model": model.name, "described": describe_model(model), "files": several(files)}
    about |= {"fingerprints": made_from} | found
    text = json.dumps(about, indent=1)
    write_bytes(out / REPORT, f"{text}\n".encode())
    return found
