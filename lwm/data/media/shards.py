"""Encodes images and videos once, into shards; a second run continues where the first stopped.

A shard appears once it is complete, together with a note. When all shards exist, `bad.jsonl` and
then `media.json` replace the notes.
"""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lwm.data.media.encode import encode_records
from lwm.data.media.items import Bad, Items, named_files
from lwm.data.media.read import Pictures, Result, Sampling, read_items
from lwm.data.media.summary import (
    BAD,
    KIND,
    SUMMARY,
    MediaCounts,
    MediaShard,
    MediaSummary,
)
from lwm.data.shard_job import ShardJob, digest, record_writer
from lwm.errors import UserError
from lwm.fingerprint import fingerprints
from lwm.progress import Progress
from lwm.vqgan.config import CodebookInfo
from lwm.vqgan.tokenizer import VisionTokenizer

_SHARD_ITEMS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaJob:
    """The inputs and settings of a set of shards, without the VQGAN."""

    items: Items
    sampling: Sampling
    codebook: CodebookInfo
    shards: ShardJob

    @classmethod
    def of(
        cls,
        items: Items,
        sampling: Sampling,
        codebook: CodebookInfo,
        folder: Path,
        shards: int | None = None,
    ) -> "MediaJob":
        """Plans the shards of a folder.

        Raises:
            UserError: There are fewer items than shards.
        """
        shards = -(-len(items) // _SHARD_ITEMS) if shards is None else shards
        if not 1 <= shards <= len(items):
            raise UserError(f"{len(items)} items cannot be written as {shards} shards")
        facts = {
            "items": digest([len(items), items.identity()]),
            "VQGAN": codebook.fingerprint,
            "dtype": codebook.dtype,
            "sampling": dataclasses.asdict(sampling),
            "number of shards": shards,
        }
        job = ShardJob(
            folder=folder.absolute(),
            kind=KIND,
            shards=shards,
            size=len(items),
            input=facts,
            files=fingerprints(named_files(items)),
        )
        return cls(items=items, sampling=sampling, codebook=codebook, shards=job)

    def write(
        self,
        number: int,
        results: Iterator[Result],
        vision: VisionTokenizer,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Writes one shard, which appears once it is complete.

        Args:
            results: Its items, perhaps followed by those of other shards.
            progress: Called after each item with the number of items read.
        """

        def fill(file: Path) -> dict[str, Any]:
            counts, bad = MediaCounts(), []

            def pictures() -> Iterator[Pictures]:
                nonlocal counts
                # Results are shared with the next shard: take no more than the own ones.
                own = itertools.islice(results, len(self.shards.part(number)))
                for done, result in enumerate(own, 1):
                    counts += _count(result)
                    if isinstance(result, Bad):
                        bad.append(result._asdict())
                    elif result is not None:
                        yield result
                    progress(done)

            with record_writer(file) as write:
                for record in encode_records(pictures(), vision):
                    write(record)
            return {"counts": dataclasses.asdict(counts), "bad": bad}

        self.shards.write(number, fill)

    def finish(self, max_bad_share: float) -> MediaSummary:
        """Writes the bad items; returns the summary of all shards.

        Raises:
            UserError: No item can be read, or too many are bad.
        """
        job, totals, shards, first = self.shards, MediaCounts(), [], ""

        def fill(file: Path) -> None:
            nonlocal totals, first
            with file.open("w", encoding="utf-8") as lines:
                for number in range(job.shards):
                    note = job.finished(number)
                    assert note, "a shard is missing"
                    counts = MediaCounts(**note["counts"])
                    totals += counts
                    shards.append(
                        MediaShard(
                            name=job.name(number),
                            size=note["size"],
                            items=counts.items,
                            content=note.get("content", ""),
                        )
                    )
                    for bad in note["bad"]:
                        first = first or bad["reason"]
                        lines.write(json.dumps(bad) + "\n")

        job.write_file(BAD, fill)
        if not totals.items:
            reason = first or "there is no image or video"
            raise UserError(f"no item can be read; the first: {reason}")
        if totals.bad_share > max_bad_share:
            raise UserError(
                f"{totals.bad_share:.1%} of the items are bad, more than {max_bad_share:.1%}; see "
                f"{job.folder / BAD}, repair them, or allow more with --max-bad-share; the first: "
                f"{first}"
            )
        return MediaSummary(
            input=job.input,
            codebook=self.codebook,
            sampling=dataclasses.asdict(self.sampling),
            counts=totals,
            shards=tuple(shards),
        )


def write_media(
    job: MediaJob,
    vision: VisionTokenizer,
    *,
    workers: int = 0,
    max_bad_share: float = 1.0,
    progress: Progress = lambda done, total: None,
) -> MediaSummary:
    """Writes all shards; complete ones are kept.

    Args:
        workers: Processes that read media; 0 for this process. They are spawned, so a script needs
            `if __name__ == "__main__":` around the call.
        max_bad_share: Largest allowed share of bad items. If it is exceeded, `media.json` is not
            written; a second call with a higher share only adds it.
        progress: Called with the number of items done and their total.

    Raises:
        UserError: The folder holds shards of another input or is being written to, too many items
            are bad, or the disk is full.
    """

    def write(missing: Sequence[int]) -> None:
        numbers = (number for shard in missing for number in job.shards.part(shard))
        with contextlib.closing(read_items(job.items, numbers, job.sampling, workers)) as results:
            job.shards.write_each(
                missing, lambda shard, report: job.write(shard, results, vision, report), progress
            )

    if workers < 0:
        raise UserError(f"workers {workers} must be 0 (this process) or above")
    return complete(job, write, max_bad_share)


def complete(
    job: MediaJob, write: Callable[[Sequence[int]], None], max_bad_share: float
) -> MediaSummary:
    """Writes the missing shards and the summary; returns the summary.

    Raises:
        UserError: See `write_media`.
    """
    return job.shards.complete(SUMMARY, MediaSummary.read, write, lambda: job.finish(max_bad_share))


def _count(result: Result) -> MediaCounts:
    if result is None:
        return MediaCounts(passed_over=1)
    if isinstance(result, Bad):
        return MediaCounts(bad=1)
    return MediaCounts(
        items=1,
        images=sum(not part["is_video"] for part in result.parts),
        videos=sum(part["is_video"] for part in result.parts),
        frames=sum(part["frames"] for part in result.parts),
    )
