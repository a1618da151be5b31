"""Recipes of LWM's own stages (Liu et al. 2024, tables 11 and 13), and of the same path on Llama 3.

They need the paper's data, which cannot be had with this package: files are named by the data set.
"""

import dataclasses
from collections.abc import Callable, Sequence

from lwm.data.format import Captions, ExampleFormat
from lwm.data.pack import PackingConfig
from lwm.model.config import Compute, LlamaConfig, Rope, preset
from lwm.model.stretch import LWM_THETAS
from lwm.tokens import TokenSpace
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

_K = 1024
_TEXT_BATCH, _VISION_BATCH = 4 * _K * _K, 8 * _K * _K
"""Tokens of a batch."""
_CODES = 8192
"""Entries of the codebook of LWM's VQGAN."""
_BOOKS = {
    # Tokens of a book for each context (appendix of the paper); longer than a row, it is split.
    32 * _K: (10_000, 100_000),
    128 * _K: (100_000, 200_000),
    256 * _K: (200_000, 500_000),
    512 * _K: (500_000, 1_000_000),
    1024 * _K: (1_000_000, None),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Paper:
    """A column of the paper's tables."""

    name: str
    context: int
    steps: int
    warmup: int
    mesh: str
    batch: int = _TEXT_BATCH
    peak: float = 4e-5
    end: float | None = None
    """The last learning rate of a cosine; None if the rate stays constant."""
    cost: str
    """Operations, and hours of TPU v4 chips at 40% of their peak in bfloat16, as `--plan` computes
    them for that type."""
    expect: str


_FOUND = "any single needle is found up to this context"
_TEXT = (
    _Paper(
        name="text-32k",
        context=32 * _K,
        steps=1200,
        warmup=100,
        mesh="1,-1,4,1",
        cost="3.3e20 FLOPs, 830 chip-hours",
        expect=_FOUND,
    ),
    _Paper(
        name="text-128k",
        context=128 * _K,
        steps=3000,
        warmup=200,
        mesh="1,-1,8,1",
        cost="1.8e21 FLOPs, 4,500 chip-hours",
        expect=_FOUND,
    ),
    _Paper(
        name="text-256k",
        context=256 * _K,
        steps=3000,
        warmup=200,
        mesh="1,-1,16,1",
        cost="3.1e21 FLOPs, 7,800 chip-hours",
        expect=_FOUND,
    ),
    _Paper(
        name="text-512k",
        context=512 * _K,
        steps=720,
        warmup=50,
        mesh="1,-1,16,2",
        cost="1.4e21 FLOPs, 3,400 chip-hours",
        expect=_FOUND,
    ),
    _Paper(
        name="text-1m",
        context=1024 * _K,
        steps=450,
        warmup=25,
        mesh="1,-1,16,4",
        cost="1.6e21 FLOPs, 4,100 chip-hours",
        expect=f"{_FOUND}; of 4, one asked, 0.84",
    ),
)
_VISION = (
    _Paper(
        name="1k",
        context=_K,
        steps=45000,
        warmup=1000,
        mesh="1,-1,1,1",
        batch=_VISION_BATCH,
        peak=6e-4,
        end=6e-5,
        cost="1.5e22 FLOPs, 39,000 chip-hours",
        expect="images from text; the paper has no numbers",
    ),
    _Paper(
        name="8k",
        context=8 * _K,
        steps=14000,
        warmup=500,
        mesh="1,-1,1,1",
        batch=_VISION_BATCH,
        peak=6e-4,
        end=6e-5,
        cost="5.4e21 FLOPs, 14,000 chip-hours",
        expect="videos from text; the paper has no numbers",
    ),
    _Paper(
        name="chat-32k",
        context=32 * _K,
        steps=1200,
        warmup=100,
        mesh="1,-1,4,1",
        batch=_VISION_BATCH,
        peak=8e-5,
        cost="6.6e20 FLOPs, 1,700 chip-hours",
        expect="answers about videos of 100 frames",
    ),
    _Paper(
        name="chat-128k",
        context=128 * _K,
        steps=450,
        warmup=50,
        mesh="1,-1,8,1",
        batch=_VISION_BATCH,
        peak=8e-5,
        cost="5.4e20 FLOPs, 1,400 chip-hours",
        expect="answers about videos of 450 frames",
    ),
    _Paper(
        name="chat-1m",
        context=1024 * _K,
        steps=50,
        warmup=5,
        mesh="1,-1,16,4",
        batch=_VISION_BATCH,
        peak=8e-5,
        cost="3.6e20 FLOPs, 920 chip-hours",
        expect="VQAv2 55.8, GQA 44.8, POPE 75.2, MSVD-QA 55.9",
    ),
)
_CHAT_COSTS = {
    128 * _K: "1.8e20 FLOPs, 450 chip-hours",
    256 * _K: "3.1e20 FLOPs, 780 chip-hours",
    512 * _K: "5.7e20 FLOPs, 1,400 chip-hours",
    1024 * _K: "1.1e21 FLOPs, 2,700 chip-hours",
}
_DIALOGUE = 1500
"""Tokens of a dialogue of UltraChat: an assumption, to be replaced where the data are at hand."""
_CHAT_STEPS = 300
"""The paper does not say how long its text chat models are trained; 1.2B tokens."""
_LLAMA2_7B, _LLAMA3_8B = "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B"
_FRAMES = {_K: 1, 8 * _K: 30, 32 * _K: 100, 128 * _K: 450, 1024 * _K: 4000}
"""Frames of a video at each context."""
_LLAMA2 = preset("7b", norm_eps=1e-5)
"""LWM's own code has 1e-6 in its norms, which Llama 2 was not trained with."""
_LLAMA3 = LlamaConfig(
    tokens=TokenSpace(text=128_256),
    dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=14_336,
    max_context=8192,
    rope=Rope(theta=5e5),
    norm_eps=1e-5,
)


def _run(stage: _Paper, sets: tuple[DataSet, ...], *, codes: int = 0) -> Run:
    """Returns a stage without the model that it starts from."""
    schedule = Schedule(peak=stage.peak, warmup=stage.warmup, shape="constant")
    if stage.end is not None:
        schedule = dataclasses.replace(schedule, shape="cosine", end=stage.end)
    return Run(
        context=stage.context,
        # The vision stages keep the base of the last text stage.
        theta=max(LWM_THETAS.values()) if codes else None,
        stretch=None if codes else "lwm",
        # Nothing but the inputs of the layers is kept, and the feed-forward layers go in pieces.
        compute=Compute(remat="full", mlp_chunk=1024),
        data=Data(
            sets=sets,
            codes=codes,
            packing=PackingConfig(length=stage.context),
            rows=stage.batch // stage.context,
            streams=0,  # as many as rows, so that each host packs its own only
        ),
        training=Training(
            steps=stage.steps,
            optimizer=AdamW(schedule=schedule, decays="all"),
            keep=Keep(every=min(500, max(10, stage.steps // 10))),
            validate_every=0,
        ),
        mesh=stage.mesh,
    )


def _books(stage: _Paper) -> tuple[DataSet, ...]:
    least, most = _BOOKS[stage.context]
    return (DataSet(files=("books3",), name="books", least_tokens=least, most_tokens=most),)


def _chats(stage: _Paper) -> tuple[DataSet, ...]:
    """Returns the mixture of the text chat models; the length of the questions' documents is that
    of the context.

    The two are packed apart, since the answers to questions are less than 1% of their tokens.
    Weights are of examples; the paper's 7 to 3 is taken to be of tokens.
    """
    template = ExampleFormat(template="lwm")
    questions = f"book-questions/{stage.context // _K}k"
    return (
        DataSet(
            files=("ultrachat",),
            name="ultrachat",
            weight=round(0.7 * stage.context / _DIALOGUE, 1),
            group="chats",
            format=template,
        ),
        DataSet(
            files=(questions,), name="questions", weight=0.3, group="questions", format=template
        ),
    )


def _pictures(stage: _Paper) -> tuple[DataSet, ...]:
    """Returns the mixture of a vision stage.

    Weights are of examples. The paper mixes in 16% of text, counted in tokens: with documents of
    about 1,000 tokens that is one of 18 examples beside images of 300 tokens, and three of five
    beside videos of 7,800.
    """
    frames = _FRAMES[stage.context]
    if stage.context == _K:
        return (
            DataSet(files=("laion-2b-en",), name="laion", weight=2.0),
            DataSet(files=("coyo-700m",), name="coyo", weight=0.7),
            DataSet(files=("openllama",), name="text", weight=0.15),
        )
    if stage.context == 8 * _K:
        videos = ExampleFormat(max_n_frames=frames)
        return (
            DataSet(files=("webvid-10m",), name="webvid", format=videos),
            DataSet(files=("internvid-10m",), name="internvid", weight=0.3, format=videos),
            DataSet(files=("openllama",), name="text", weight=1.9),
        )
    drawn, seen = Captions(vision_first=0.0), Captions(vision_first=1.0, dropped=0.0)
    return tuple(
        DataSet(
            files=(files,),
            name=name,
            format=ExampleFormat(template="lwm", captions=captions, max_n_frames=most),
        )
        for name, files, captions, most in (
            ("text to image", "images", drawn, 1),
            ("images", "image-questions", seen, 1),
            ("text to video", "videos", drawn, frames),
            ("videos", "video-questions", seen, frames),
        )
    )


def _text_run(stage: _Paper) -> Run:
    return _run(stage, _books(stage))


def _vision_run(stage: _Paper) -> Run:
    return _run(stage, _pictures(stage), codes=_CODES)


def _from(run: Run, init: str, before: LlamaConfig) -> Run:
    """Returns a stage that starts from a model, with the shape that it makes of it."""
    return dataclasses.replace(run, init=init, model=run.shape_from(before))


def _chain(stages: Sequence[_Paper], run: Callable[[_Paper], Run]) -> tuple[Stage, ...]:
    return tuple(Stage(name=stage.name, run=run(stage)) for stage in stages)


def _started(stages: tuple[Stage, ...], init: str, shape: LlamaConfig) -> Curriculum:
    """Returns stages of which the first starts from a model of a shape."""
    first = dataclasses.replace(stages[0], run=_from(stages[0].run, init, shape))
    return Curriculum(stages=(first, *stages[1:]))


def lwm() -> Curriculum:
    """Trains LWM from Llama 2 7B as the paper does: text from 32K to 1M, images, videos, chat.

    Stages are those of the recipes `lwm-text-32k` to `lwm-chat-1m`, each from the last. Cost: 540B
    tokens, 3.1e22 FLOPs, 77,000 hours of TPU v4 chips at 40% of their peak in bfloat16. Expect, as
    the paper reports: any single needle found up to 1M tokens, 4 needles with one asked at 0.84;
    VQAv2 55.8, GQA 44.8, POPE 75.2, MSVD-QA 55.9, MSRVTT-QA 44.1.
    """
    stages = _chain(_TEXT, _text_run) + _chain(_VISION, _vision_run)
    return _started(stages, _LLAMA2_7B, _LLAMA2)


def lwm_llama3() -> Curriculum:
    """Trains the same stages on Llama 3 8B, whose context is 8K; RoPE's base grows by the NTK rule.

    Its eight key/value heads allow tp 8 at most, so that the longest rows are spread over sp. Cost:
    540B tokens, 3.4e22 FLOPs, 85,000 hours of TPU v4 chips at 40% of their peak in bfloat16. Nobody
    has run it: expect no numbers.
    """
    text = tuple(dataclasses.replace(stage, mesh=_narrow(stage.mesh)) for stage in _TEXT)
    vision = tuple(dataclasses.replace(stage, mesh=_narrow(stage.mesh)) for stage in _VISION)

    def by_ntk(stage: _Paper) -> Run:
        return dataclasses.replace(_text_run(stage), stretch="ntk")

    def kept(stage: _Paper) -> Run:
        return dataclasses.replace(_vision_run(stage), theta=None)

    return _started(_chain(text, by_ntk) + _chain(vision, kept), _LLAMA3_8B, _LLAMA3)


def _narrow(mesh: str) -> str:
    """Returns a mesh with tp 8 at most, and sp larger by as much."""
    dp, fsdp, tp, sp = map(int, mesh.split(","))
    most = min(tp, _LLAMA3.num_kv_heads)
    return f"{dp},{fsdp},{most},{sp * tp // most}"


def stages_of_lwm() -> dict[str, Callable[[], Run]]:
    """Returns a recipe for each stage, from the model of the run before in `runs`."""
    recipes: dict[str, Callable[[], Run]] = {}
    shape, init = _LLAMA2, _LLAMA2_7B
    for stage in (*_TEXT, *_VISION):
        make = _text_run if stage in _TEXT else _vision_run
        recipes[f"lwm-{stage.name}"] = _recipe(stage, make, init, shape)
        shape, init = make(stage).shape_from(shape), f"runs/lwm-{stage.name}"
        if stage.context in _CHAT_COSTS and stage in _TEXT:
            chat = dataclasses.replace(
                stage,
                name=stage.name.replace("text", "text-chat"),
                steps=_CHAT_STEPS,
                warmup=25,
                cost=_CHAT_COSTS[stage.context],
                expect="answers, and a few needles less; the paper has no numbers",
            )
            recipes[f"lwm-{chat.name}"] = _recipe(chat, _chat_run, init, shape)
    return recipes


def _chat_run(stage: _Paper) -> Run:
    return _run(stage, _chats(stage))


def _recipe(
    stage: _Paper, make: Callable[[_Paper], Run], init: str, before: LlamaConfig
) -> Callable[[], Run]:
    def recipe() -> Run:
        return _from(make(stage), init, before)

    tokens = stage.steps * stage.batch
    recipe.__doc__ = f"""Trains LWM-{stage.name.title()} of the paper, from {init}.

    {tokens / 1e9:.3g}B tokens in {stage.steps:,} steps, rows of {stage.context:,}. Cost:
    {stage.cost} of TPU v4 at 40% of their peak in bfloat16. Expect: {stage.expect}.
    """
    return recipe
