"""Images and videos that are tokenized on first use, into the cache."""

import contextlib
import time
from pathlib import Path

from lwm.data.media.inputs import open_items
from lwm.data.media.items import Items
from lwm.data.media.read import Sampling
from lwm.data.media.shards import MediaJob, write_media
from lwm.data.media.summary import media_files
from lwm.data.media.world import WorldItems, WorldSet
from lwm.data.paths import Warn
from lwm.data.shard_job import digest
from lwm.errors import UserError
from lwm.files import ASSETS, exclusive
from lwm.folders import cache_folder
from lwm.progress import Progress
from lwm.vqgan.checkpoint import SHIPPED, locate_vqgan
from lwm.vqgan.tokenizer import VisionTokenizer

CLIPS = ASSETS / "clips"
"""The captioned clips that come with the package."""
FRAMES = 4
"""Frames of each of these clips."""
_EVERY = 20.0
"""Seconds between lines on how far it is."""


def tokenized_clips() -> Path:
    """Returns the folder of the shards of the package's clips, by the package's VQGAN.

    Raises:
        UserError: The cache cannot be written, or a package that reads pictures is missing.
    """
    items = open_items((str(CLIPS / "captions.jsonl"),))
    return _tokenized(items, "clips", vqgan=SHIPPED, max_frames=FRAMES)


def tokenized_world(name: str, *, warn: Warn = lambda text: None) -> Path:
    """Returns the folder of the shards of a set of the world.

    Args:
        name: See `WorldSet.parse`.
        warn: Receives a line when clips are tokenized, which may take minutes, and others on how
            far it is.

    Raises:
        UserError: There is no such set, its VQGAN cannot be read, or the cache not written.
    """
    world = WorldSet.parse(name)
    warned = 0.0

    def report(done: int, total: int) -> None:
        nonlocal warned
        now = time.monotonic()
        if not warned:
            warn(f"{name}: tokenizes {total:,} clips, once; they are kept in the cache")
        elif now - warned > _EVERY:
            warn(f"{name}: {done:,} of {total:,} clips")
        else:
            return
        warned = now

    vqgan = locate_vqgan(world.vqgan)
    return _tokenized(WorldItems(world), "world", vqgan=vqgan, progress=report)


def _tokenized(
    items: Items,
    kind: str,
    *,
    vqgan: Path,
    max_frames: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Returns the folder of the shards of items; writes those that are missing."""
    vision = VisionTokenizer.open(vqgan, batch=16)
    # Another version of the package may have other items.
    made_from = [vision.codebook.fingerprint, items.identity(), max_frames]
    folder = cache_folder() / kind / digest(made_from)[:16]
    with contextlib.suppress(UserError):  # not finished, or damaged
        media_files(folder)
        return folder
    sampling = Sampling(resolution=vision.codebook.resolution, max_frames=max_frames)
    job = MediaJob.of(items, sampling, vision.codebook, folder)
    # The processes of a run ask at the same time.
    with exclusive(folder.parent, wait=True):
        write_media(job, vision, progress=progress)
    return folder
