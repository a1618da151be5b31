"""The captioned clips that come with the package, tokenized on first use."""

import contextlib
from pathlib import Path

from lwm.data.media.inputs import open_items
from lwm.data.media.read import Sampling
from lwm.data.media.shards import MediaJob, write_media
from lwm.data.media.summary import media_files
from lwm.data.shard_job import digest
from lwm.errors import UserError
from lwm.files import ASSETS, exclusive
from lwm.hub.catalog import cache_folder
from lwm.vqgan.checkpoint import SHIPPED
from lwm.vqgan.tokenizer import VisionTokenizer

CLIPS = ASSETS / "clips"
FRAMES = 4
"""Frames of each clip."""


def tokenized_clips() -> Path:
    """Returns the folder of the shards, for the VQGAN that comes with the package.

    Raises:
        UserError: The cache cannot be written, or a package that reads pictures is missing.
    """
    vision = VisionTokenizer.open(SHIPPED, batch=16)
    items = open_items((str(CLIPS / "captions.jsonl"),))
    # Another version of the package may have other clips.
    made_from = [vision.codebook.fingerprint, items.identity(), FRAMES]
    folder = cache_folder() / "clips" / digest(made_from)[:16]
    with contextlib.suppress(UserError):  # not finished, or damaged
        media_files(folder)
        return folder
    sampling = Sampling(resolution=vision.codebook.resolution, max_frames=FRAMES)
    job = MediaJob.of(items, sampling, vision.codebook, folder, 1)
    # The processes of a run ask at the same time.
    with exclusive(folder.parent, wait=True):
        write_media(job, vision)
    return folder
