"""A curriculum for small models: text at growing contexts, images and clips, then chat."""

import dataclasses
from collections.abc import Mapping

from lwm.data.format import Captions, ExampleFormat
from lwm.data.pack import PackingConfig
from lwm.model.config import LlamaConfig
from lwm.recipes.small import SMALL
from lwm.train.config import (
    AdamW,
    Curriculum,
    Data,
    DataSet,
    Keep,
    Run,
    Schedule,
    Stage,
    Training,
)

_CHARACTERS = 3
"""Characters of a token of these books, rather fewer than there are."""
_FEWEST = 2.6
"""Characters of a token in those of the books that have most tokens for their length."""
_COPY = 70
"""Tokens of a repeated sequence, on average."""
_LINE = 25
"""Tokens of a line that states a number."""
_LAST_RATE = 0.05
"""Share of the highest learning rate that is left at the end of the stages in which it falls."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a curriculum."""

    model: LlamaConfig
    """Shape of the model; its context is replaced by that of the first stage of text."""
    vocabulary: int
    copies: float
    """Share of the tokens of text that are repeated random ids, an exercise in copying."""
    text: Mapping[int, int]
    """Tokens of the stages of text, by their contexts, ascending."""
    vision: int
    """Tokens of the stage of images and clips."""
    chat: int
    """Tokens of the last stage."""
    batch: int
    """Tokens of an update, if rows are not longer."""
    rate: float
    """Highest learning rate."""
    vqgan: str = "vqgan-64"


LAPTOP = Sizes(
    model=SMALL,
    vocabulary=4096,
    copies=0.2,
    text={512: 2_000_000, 1024: 2_000_000, 2048: 1_500_000, 4096: 1_500_000},
    vision=3_000_000,
    chat=1_500_000,
    batch=2048,
    rate=2e-3,
)


def laptop_curriculum() -> Curriculum:
    """Trains a model of 5M parameters: text at 512 to 4K, then images and clips, then chat.

    First come books with numbers to recall and exercises in copying, then the procedural world in
    images and clips of eight frames, then questions about all of it. Cost: 11.5M tokens, about two
    hours on two CPU cores. Result: a loss of 4.22 on held-out books after the stages of text; it
    neither recalls numbers nor sees yet.
    """
    return curriculum(LAPTOP)


def curriculum(sizes: Sizes) -> Curriculum:
    """Returns the stages for a model of any size."""
    contexts = sorted(sizes.text)
    texts = tuple(
        Stage(name=f"text-{_named(context)}", run=_text(sizes, context)) for context in contexts
    )
    longest = contexts[-1]
    return Curriculum(
        stages=(
            *texts,
            Stage(name="vision", run=_vision(sizes, longest)),
            Stage(name="chat", run=_chat(sizes, longest)),
        )
    )


def _named(context: int) -> str:
    return f"{context // 1024}k" if context >= 1024 else str(context)


def _text(sizes: Sizes, context: int) -> Run:
    first, last = context == min(sizes.text), context == max(sizes.text)
    run = _run(
        sizes,
        context,
        sizes.text[context],
        (*_books("train", context, count=20_000), _copies(sizes, "train", context)),
        (*_books("held-out", context, count=200), _copies(sizes, "held-out", context)),
        peak=sizes.rate if first else sizes.rate / 2,
        falls=last,
    )
    # What is left of an excerpt that was split would else weigh as much as a whole one.
    packing = dataclasses.replace(run.data.packing, weigh="token")
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, packing=packing))
    return _from_nothing(sizes, run, context) if first else run


def _from_nothing(sizes: Sizes, run: Run, context: int) -> Run:
    """Returns the run of a new model; its tokenizer knows the words of later stages, too."""
    later = tuple(
        DataSet(files=(f"world:train,count=400,text={text}",), name=text, weight=0.0)
        for text in ("captions", "questions")
    )
    data = dataclasses.replace(run.data, sets=(*run.data.sets, *later), vocabulary=sizes.vocabulary)
    model = dataclasses.replace(sizes.model, max_context=context)
    return dataclasses.replace(run, model=model, data=data, context=None, stretch=None)


def _copies(sizes: Sizes, part: str, context: int) -> DataSet:
    """Returns repeated random ids, of the weight that makes them their share of the tokens."""
    count = 20_000 if part == "train" else 200
    books = 2 * context / _COPY
    return DataSet(
        files=(f"copies:{part},count={count}",),
        name="copies",
        weight=round(books * sizes.copies / (1 - sizes.copies), 2),
    )


def _books(part: str, context: int, *, count: int) -> tuple[DataSet, ...]:
    """Returns excerpts that fill a row, and others in which numbers are stated twice."""
    recalls = max(2, context // 128)
    # They should fit a row: the second statement would often be in another part than the first.
    characters = int(_FEWEST * (context - 2 * _LINE * recalls))
    return (
        DataSet(
            files=(f"recalls:{part},count={count},characters={_CHARACTERS * context},recalls=0",),
            name="books",
        ),
        DataSet(
            files=(f"recalls:{part},count={count},characters={characters},recalls={recalls}",),
            name="recalls",
        ),
    )


def _vision(sizes: Sizes, context: int) -> Run:
    both = ExampleFormat(captions=Captions(vision_first=0.3, variants=2))
    sets = (
        DataSet(files=(_world(sizes, "train", frames=1),), name="images", weight=3.0, format=both),
        DataSet(files=(_world(sizes, "train", frames=8),), name="clips", weight=2.0, format=both),
        # Text goes on, or it would be forgotten: about a third of the tokens.
        *(dataclasses.replace(one, weight=0.1) for one in _books("train", context, count=20_000)),
    )
    held_out = (
        DataSet(files=(_world(sizes, "heldout", frames=1, count=200),), name="images"),
        DataSet(files=(_world(sizes, "heldout", frames=8, count=100),), name="clips"),
        *_books("held-out", context, count=100),
    )
    run = _run(sizes, context, sizes.vision, sets, held_out, peak=sizes.rate / 2, falls=True)
    return _seeing(sizes, run)


def _chat(sizes: Sizes, context: int) -> Run:
    longest = int(_FEWEST * max(64, context - 12 * _LINE))
    chats = ",form=chat,recalls=8"
    sets = (
        DataSet(
            files=(
                f"recalls:train,count=20000,characters={longest // 8}{chats}",
                f"recalls:train,count=2000,characters={longest}{chats},seed=1",
            ),
            name="chats",
        ),
        DataSet(files=(_world(sizes, "train", frames=8, text="questions"),), name="questions"),
        DataSet(files=(_world(sizes, "train", frames=1, seed=1),), name="images"),
        DataSet(files=(_world(sizes, "train", frames=8, seed=1),), name="clips", weight=0.5),
        # About a sixth of the tokens.
        *(dataclasses.replace(one, weight=0.05) for one in _books("train", context, count=20_000)),
    )
    held_out = (
        DataSet(files=(f"recalls:held-out,count=50,characters={longest}{chats}",), name="chats"),
        DataSet(
            files=(_world(sizes, "heldout", frames=8, count=200, text="questions"),),
            name="questions",
        ),
        DataSet(files=(_world(sizes, "heldout", frames=8, count=100),), name="clips"),
        *_books("held-out", context, count=100),
    )
    run = _run(sizes, context, sizes.chat, sets, held_out, peak=sizes.rate / 2, falls=True)
    return _seeing(sizes, run)


def _world(
    sizes: Sizes,
    split: str,
    *,
    frames: int,
    count: int | None = None,
    text: str = "captions",
    seed: int = 0,
) -> str:
    """Returns the name of a set that has about the tokens of its stage."""
    if count is None:
        count = max(200, (sizes.vision + sizes.chat) // (600 * frames))
    options = f"count={count},frames={frames},text={text},seed={seed},vqgan={sizes.vqgan}"
    # That VQGAN loses the colours of things on other backgrounds.
    return f"world:{split},{options},backgrounds=white"


def _seeing(sizes: Sizes, run: Run) -> Run:
    """Returns a run of vision at the context that the model has."""
    data = dataclasses.replace(run.data, vqgan=sizes.vqgan)
    return dataclasses.replace(run, data=data, context=None, stretch=None)


def _run(
    sizes: Sizes,
    context: int,
    tokens: int,
    sets: tuple[DataSet, ...],
    held_out: tuple[DataSet, ...],
    *,
    peak: float,
    falls: bool,
) -> Run:
    """Returns a run whose learning rate may fall over the last quarter."""
    rows = max(1, sizes.batch // context)
    steps = max(1, tokens // (rows * context))
    schedule = Schedule(peak=peak, warmup=min(50, steps // 4), shape="constant")
    if falls:
        schedule = dataclasses.replace(
            schedule, shape="wsd", decay=steps // 4, end=_LAST_RATE * peak
        )
    return Run(
        context=context,
        stretch="ntk",
        data=Data(
            sets=sets,
            held_out=held_out,
            held_out_rows=max(16, 64 * 1024 // context),
            packing=PackingConfig(length=context),
            rows=rows,
            streams=4,
        ),
        training=Training(
            steps=steps,
            optimizer=AdamW(schedule=schedule),
            keep=Keep(every=max(1, steps // 4), last=1),
            validate_every=max(1, steps // 4),
        ),
    )
