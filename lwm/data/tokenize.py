"""Encodes records once, into shards; a second run continues where the first stopped.

A shard appears once it is complete, together with a note. When all shards exist, `shards.json`
replaces the notes.
"""

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Callable, MutableSequence, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from lwm.data.fields import RecordEncoder
from lwm.data.shard_job import ShardJob, digest, process_pool, record_writer, run_shared
from lwm.data.shards import SHOWN, SUMMARY, Counts, Shard, Summary, tokenizer_fingerprint, write_ids
from lwm.data.sources import Source, files_of, identity
from lwm.errors import UserError
from lwm.fingerprint import fingerprints, named
from lwm.progress import Progress

_POLL_SECONDS = 0.2
_REPORT_EVERY = 256
"""Records between two reports of progress."""


def write_shards(
    source: Source,
    encoder: RecordEncoder,
    folder: Path,
    *,
    shards: int = 1,
    workers: int = 0,
    max_bad_share: float = 1.0,
    progress: Progress = lambda done, total: None,
) -> Summary:
    """Encodes all records into shards; complete ones are kept.

    Bad records are left out and counted. The shards hold the records in order, each about the same
    number.

    Args:
        workers: Processes, each writing one shard at a time; 0 for this process. They are spawned,
            so a script needs `if __name__ == "__main__":` around the call.
        max_bad_share: Largest allowed share of bad records. If it is exceeded, `shards.json` is not
            written; a second call with a higher share only adds it.
        progress: Called with the number of records done and their total.

    Raises:
        UserError: The folder holds shards of another input or is being written to, too many
            records are bad, or the disk is full.
    """
    if not 1 <= shards <= len(source):
        raise UserError(f"{len(source)} records cannot be written as {shards} shards")
    if workers < 0:
        raise UserError(f"workers {workers} must be 0 (this process) or above")
    job = _Job.of(source, encoder, folder.absolute(), shards)

    def write(missing: Sequence[int]) -> None:
        if workers:
            _write_in_processes(job, missing, workers, progress)
        else:
            job.shards.write_each(missing, job.write, progress, every=_REPORT_EVERY)

    return job.shards.complete(SUMMARY, Summary.read, write, lambda: job.finish(max_bad_share))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """The inputs and settings of a set of shards."""

    source: Source
    encoder: RecordEncoder
    shards: ShardJob

    @classmethod
    def of(cls, source: Source, encoder: RecordEncoder, folder: Path, shards: int) -> "_Job":
        tokenizer = encoder.tokenizer
        chat = [tokenizer.chat_template, tokenizer.add_bos, sorted(tokenizer.eos_ids)]
        facts = {
            "records": digest([len(source), identity(source)]),
            "tokenizer": digest([tokenizer_fingerprint(tokenizer), chat]),
            "tokens": dataclasses.asdict(encoder.tokens),
            "format": dataclasses.asdict(encoder.format),
            "number of shards": shards,
        }
        job = ShardJob(
            folder=folder,
            kind="tokens",
            shards=shards,
            size=len(source),
            input=facts,
            files=fingerprints(named(files_of(source))),
        )
        return cls(source=source, encoder=encoder, shards=job)

    def write(self, number: int, report: Callable[[int], None]) -> None:
        """Writes one shard, and reports the number of its records done after each."""

        def fill(file: Path) -> dict[str, Any]:
            counts, reasons = Counts(), []
            with record_writer(file) as write:
                for done, index in enumerate(self.shards.part(number), 1):
                    try:
                        record = self.source[index]
                        example = self.encoder.encode(
                            record.value, name=record.name, line=record.line, number=index
                        )
                    except UserError as error:
                        counts += Counts(bad=1)
                        reasons += [str(error)] if len(reasons) < SHOWN else []
                    else:
                        write(write_ids(example))
                        counts += Counts.of(example, self.encoder.tokens)
                    report(done)
            return {"counts": dataclasses.asdict(counts), "reasons": reasons}

        self.shards.write(number, fill)

    def finish(self, max_bad_share: float) -> Summary:
        """Returns the summary of all shards.

        Raises:
            UserError: No record can be read, or too many are bad.
        """
        job = self.shards
        notes = [job.finished(number) for number in range(job.shards)]
        assert all(notes), "a shard is missing"
        whole = [note for note in notes if note]
        counts = sum((Counts(**note["counts"]) for note in whole), Counts())
        reasons = tuple([reason for note in whole for reason in note["reasons"]][:SHOWN])
        if not counts.examples:
            raise UserError(f"no record can be read; the first: {reasons[0]}")
        if counts.bad_share > max_bad_share:
            raise UserError(
                f"{counts.bad_share:.1%} of the records are bad, more than {max_bad_share:.1%}; "
                f"repair them, or allow more with --max-bad-share; the first: {reasons[0]}"
            )
        return Summary(
            tokens=self.encoder.tokens,
            tokenizer=tokenizer_fingerprint(self.encoder.tokenizer),
            input=job.input,
            counts=counts,
            reasons=reasons,
            shards=tuple(
                Shard(
                    job.name(number),
                    note["size"],
                    note["counts"]["examples"],
                    note.get("content", ""),
                )
                for number, note in enumerate(whole)
            ),
        )


def _write_in_processes(
    job: _Job, missing: Sequence[int], workers: int, progress: Progress
) -> None:
    before = job.shards.num_finished(missing)
    # The number of records done of each shard; the last entry stops all processes.
    shared = multiprocessing.get_context("spawn").RawArray("q", job.shards.shards + 1)
    pool = process_pool(min(workers, len(missing)), (job, shared))
    try:
        futures = {pool.submit(run_shared, _work, number) for number in missing}
        while futures:
            done, futures = concurrent.futures.wait(
                futures, _POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION
            )
            for future in done:
                future.result()
            progress(before + sum(shared[:-1]), job.shards.size)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; run "
            "again with fewer workers: complete shards are kept"
        ) from None
    finally:
        shared[-1] = 1
        pool.shutdown(cancel_futures=True)


def _work(job_and_counts: tuple[_Job, MutableSequence[int]], number: int) -> None:
    job, counts = job_and_counts

    def report(done: int) -> None:
        counts[number] = done
        if counts[-1]:
            raise KeyboardInterrupt  # in the parent process

    job.write(number, report)
