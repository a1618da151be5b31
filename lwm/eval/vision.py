"""What `lwm eval vision` does: captions drawn, pictures told, codes foretold, of known pairs."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from lwm.data.captions import ASK, request
from lwm.data.chat import chat_ids
from lwm.data.example import Example
from lwm.data.pack import PackingConfig
from lwm.data.sets import open_records
from lwm.errors import UserError
from lwm.files import make_folder, write_bytes
from lwm.generate.engine import Session, chunks
from lwm.generate.grammar import TEXT_ONLY
from lwm.generate.language_model import LanguageModel
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.vision import draw_whole
from lwm.progress import Progress
from lwm.sampling_params import FrameSampling, VisionSampling
from lwm.tokenizer.message import Message, Vision
from lwm.tokenizer.template import render_chat
from lwm.train.validate import HeldOut

REPORT = "report.json"
_TOGETHER = 16
"""Rows that are written together."""
_ANSWER = 48
"""Tokens of a caption, at most."""

GREEDY = FrameSampling(guidance=1.0, temperature=0.0)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture and what it is called."""

    caption: str
    vision: Vision


def read_pairs(
    files: tuple[str, ...], *, count: int | None = None, tokens_per_frame: int | None = None
) -> list[Pair]:
    """Reads records with a caption and codes, evenly over the set if there are too many.

    Args:
        files: See `open_records`.
        count: Pairs, at most.
        tokens_per_frame: Codes of a frame, where a record does not say how many frames it has.

    Raises:
        UserError: A record has no caption or no codes, or there is none.
    """
    source = open_records(files)
    number = len(source) if count is None else min(count, len(source))
    records = [source[int(i)] for i in np.linspace(0, len(source) - 1, number)]
    pairs = []
    for record in records:
        caption = record.value.get("caption")
        if not isinstance(caption, str) or record.value.get("vision") is None:
            raise UserError(f"{record.name}: it should have a 'caption' and codes under 'vision'")
        pairs.append(Pair(caption, Vision.of(record.value, tokens_per_frame=tokens_per_frame)))
    if len({pair.vision.codes.shape for pair in pairs}) > 1:
        raise UserError("the pictures differ in their number of frames; tokenize them alike")
    return pairs


def measure(
    model: LanguageModel, pairs: Sequence[Pair], *, progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Returns how well a model knows pairs of pictures and captions.

    Of the codes, `codes_accuracy` are the likeliest, the caption and all codes before given;
    `drawn` is the share of captions whose greedy drawing has more codes in common with the
    picture than with any other of these; `told` that of pictures whose greedy caption is theirs.

    Raises:
        UserError: The frames are not those of the model, or do not fit.
    """
    for pair in pairs:
        model.require_frames(pair.vision)
    total = 2 * len(pairs)
    drawn: list[np.ndarray] = []
    told: list[str] = []
    for start in range(0, len(pairs), _TOGETHER):
        some = pairs[start : start + _TOGETHER]
        drawn += [vision.codes for vision in _draw(model, some)]
        told += _tell(model, some)
        progress(2 * len(drawn), total)
    known = np.stack([pair.vision.codes for pair in pairs])
    nearest = [int(np.argmax((known == codes).mean(axis=(1, 2)))) for codes in drawn]
    right_drawn = [near == number for number, near in enumerate(nearest)]
    right_told = [text == pair.caption for text, pair in zip(told, pairs, strict=True)]
    return {
        "pairs": len(pairs),
        "codes_accuracy": _accuracy(model, pairs),
        "drawn": sum(right_drawn),
        "told": sum(right_told),
        "rows": [
            {
                "caption": pair.caption,
                "nearest": pairs[near].caption,
                "overlap": float((known[number] == drawn[number]).mean()),
                "told": text,
            }
            for number, (pair, near, text) in enumerate(zip(pairs, nearest, told, strict=True))
        ],
    }


def _draw(model: LanguageModel, pairs: Sequence[Pair]) -> list[Vision]:
    return draw_whole(
        model,
        [pair.caption for pair in pairs],
        kind=pairs[0].vision.kind,
        frames=len(pairs[0].vision.codes),
        drawings=VisionSampling(image=GREEDY, video=GREEDY),
    )


def _tell(model: LanguageModel, pairs: Sequence[Pair]) -> list[str]:
    """Returns the captions that a model writes, all together."""
    runs = [
        render_chat(
            [Message("user", (ASK[pair.vision.kind], pair.vision))],
            model.tokenizer,
            template=model.template,
            marks=model.marks,
        )
        for pair in pairs
    ]
    longest = max(map(len, runs))
    model.require_fit(longest, _ANSWER)
    slots = sum(chunks(longest)) + _ANSWER
    model.require_memory(slots, rows=len(runs))
    session = Session(model.llama, model.mesh, rows=len(runs), slots=slots)
    session.read(runs)
    grammar = model.grammar
    text_only = grammar.start([TEXT_ONLY] * len(runs), room=_ANSWER)
    plan = GenerationPlan(
        max_tokens=_ANSWER,
        stop_ids=model.tokenizer.eos_ids,
        vision=VisionPlan(grammar=grammar, state=text_only),
    )
    ids: Int[np.ndarray, "B T"] = np.concatenate(
        [burst.ids for burst in session.generate(plan)], axis=1
    )
    return [model.tokenizer.decode(row[row >= 0]).strip() for row in ids]


def _accuracy(model: LanguageModel, pairs: Sequence[Pair]) -> float:
    """Returns the share of codes that are the likeliest, each after those before it."""
    examples = []
    for pair in pairs:
        asked = request(pair.caption, pair.vision.kind)
        turns = [asked, Message("assistant", (pair.vision,))]
        ids, learn = chat_ids(turns, model.tokenizer, template=model.template, marks=model.marks)
        learn &= ids >= model.marks.tokens.text
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
    files: tuple[str, ...],
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
    pairs = read_pairs(files, count=count, tokens_per_frame=model.vision.tokens_per_frame)
    found = measure(model, pairs, progress=progress)
    text = json.dumps({"model": model.name, "files": files} | found, indent=1)
    write_bytes(out / REPORT, f"{text}\n".encode())
    return found
