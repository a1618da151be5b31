"""Media shards, written by the machines of a Ray cluster with shared files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lwm.cluster import connected, local_errors, require_room
from lwm.data.media.read import read_items
from lwm.data.media.shards import MediaJob, complete
from lwm.data.media.summary import MediaSummary
from lwm.errors import UserError
from lwm.files import require_package
from lwm.progress import Progress
from lwm.vqgan.config import CodebookInfo
from lwm.vqgan.tokenizer import VisionTokenizer

_RESTARTS = 3
_DIED = (
    "a Ray process died repeatedly, perhaps for lack of memory; run again with fewer workers: "
    "complete shards are kept"
)


def write_with_ray(
    job_of: Callable[[CodebookInfo], MediaJob],
    vqgan: Path,
    options: dict[str, Any],
    workers: int,
    *,
    max_bad_share: float,
    progress: Progress = lambda done, total: None,
) -> MediaSummary:
    """Writes all shards with `workers` actors, each of which opens the VQGAN once.

    The shards equal those of `write_media`, byte for byte on devices of one kind. Runs on the
    cluster that Ray is configured for, for instance by RAY_ADDRESS, else on this machine. Paths
    must lead to the same files on all machines.

    Args:
        job_of: Plans the shards for a codebook.
        options: Keyword arguments of `VisionTokenizer.open`.
        workers: Number of actors; each has a CPU core, and a GPU if the cluster has some.

    Raises:
        UserError: See `write_media`; or actors die repeatedly.
    """
    ray = require_package("ray", "--engine ray", "ray")
    if workers < 0:
        raise UserError(f"workers {workers} must be at least 1 with Ray, or 0 for one")
    with connected(ray), local_errors(ray, _DIED):
        there = ray.cluster_resources()
        gpus = min(1, there.get("GPU", 0))
        require_room(there, max(1, workers), {"CPU": 1, "GPU": gpus})
        made = ray.remote(
            num_cpus=1, num_gpus=gpus, max_restarts=_RESTARTS, max_task_retries=_RESTARTS
        )(_Writer)
        actors = [made.remote(vqgan.absolute(), options)]
        # This process uses no accelerator: an actor on this machine may need it.
        job = job_of(ray.get(actors[0].codebook.remote()))
        shared, total = ray.put(job), job.shards.size

        def write(missing: Sequence[int]) -> None:
            done = job.shards.num_finished(missing)
            while len(actors) < min(workers, len(missing)):
                actors.append(made.remote(vqgan.absolute(), options))
            pool = ray.util.ActorPool(actors)
            tasks = pool.map_unordered(
                lambda actor, number: actor.write.remote(shared, number), missing
            )
            for number in tasks:
                done += len(job.shards.part(number))
                progress(done, total)

        return complete(job, write, max_bad_share)


class _Writer:
    """An actor that writes shards."""

    def __init__(self, vqgan: Path, options: dict[str, Any]) -> None:
        # Opened later: Ray wraps errors of a constructor.
        self._open = lambda: VisionTokenizer.open(vqgan, **options)
        self._vision: VisionTokenizer | None = None

    def codebook(self) -> CodebookInfo:
        """Opens the VQGAN, and returns the facts about it."""
        if self._vision is None:
            self._vision = self._open()
        return self._vision.codebook

    def write(self, job: MediaJob, number: int) -> int:
        """Writes one shard; returns its number."""
        if self.codebook().fingerprint != job.codebook.fingerprint:
            raise UserError("the VQGAN is not the same on all machines; give each the same file")
        assert self._vision is not None
        results = read_items(job.items, job.shards.part(number), job.sampling, 0)
        job.write(number, results, self._vision)
        return number
