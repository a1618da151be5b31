"""Recipes of small language models, which a laptop trains."""

import dataclasses

from lwm.data.format import Captions, ExampleFormat
from lwm.data.pack import PackingConfig
from lwm.model.config import LlamaConfig
from lwm.sampling_params import LWM_SAMPLING, FrameSampling, VisionSampling
from lwm.tokens import TokenSpace
from lwm.train.config import AdamW, Data, DataSet, Keep, Run, Schedule, Training

_FROM_TOKENIZER = TokenSpace(text=1)
"""The run replaces it by the token space of its tokenizer."""
SMALL = LlamaConfig(
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
        model=SMALL,
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
        model=dataclasses.replace(SMALL, max_context=2048),
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
