"""Encodes records once, into shards; a second run continues where the first stopped.

A shard appears when it is whole, with a note on it; when all are there, `shards.json` takes the
place of the notes.
"""

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Callable, MutableSequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from lwm.data.fields import RecordEncoder
from lwm.data.shard_job import ShardJob, digest, exclusive, follow_parent, record_writer
from lwm.data.shards import SHOWN, SUMMARY, Counts, Shard, Summary, tokenizer_fingerprint, write_ids
from lwm.data.sources import Source, identity
from lwm.errors import UserError
from lwm.files import require_package
from lwm.progress import Progress

_POLL_SECONDS = 0.2
_TOLD_EVERY = 256


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
    """Encodes all records into shards; shards that are there already are kept.

    A record that cannot be read is left out, and counted. The shards hold the records in their
    order, each about the same number of them.

    Args:
        source: The records.
        encoder: Makes them examples.
        folder: Where the shards go.
        shards: How many files.
        workers: How many processes write them, a shard each at a time; 0 is this process. A
            program that asks for some must not do so when it is merely imported.
        max_bad_share: More records than this may not be bad. `shards.json` is then missing, and a
            second call with a higher share only has to add it.
        progress: Told how many records are done, of how many.

    Raises:
        UserError: The folder holds shards of another input or is being written to, too many
            records are bad, or the disk is full.
    """
    if not 1 <= shards <= len(source):
        raise UserError(f"{len(source)} records cannot be written as {shards} shards")
    if workers < 0:
        raise UserError(f"workers {workers} must be 0 (this process) or above")
    require_package("array_record.python.array_record_module", "ArrayRecord")
    job = _Job.of(source, encoder, folder.absolute(), shards)
    with exclusive(job.shards.folder):
        if (job.shards.folder / SUMMARY).is_file():
            summary = Summary.read(job.shards.folder)
            job.shards.require_same(summary.input)
            return summary
        job.shards.sweep()
        missing = job.shards.missing()
        if workers and missing:
            _write_in_processes(job, missing, workers, progress)
        else:
            _write_here(job, missing, progress)
        return job.finish(max_bad_share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """All that a process needs in order to write a shard."""

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
        job = ShardJob(folder=folder, kind="tokens", shards=shards, size=len(source), input=facts)
        return cls(source=source, encoder=encoder, shards=job)

    def write(self, number: int, tell: Callable[[int], None]) -> None:
        """Writes one shard, which appears when it is whole.

        Args:
            number: Which.
            tell: Called after each record with how many are done.
        """

        def fill(file: Path) -> dict[str, Any]:
            counts, reasons = self._encode(number, file, tell)
            return {"counts": dataclasses.asdict(counts), "reasons": reasons}

        self.shards.write(number, fill)

    def finish(self, max_bad_share: float) -> Summary:
        """Writes what all shards are, in place of the notes on each."""
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
                f"mend them, or allow more with --max-bad-share; the first: {reasons[0]}"
            )
        summary = Summary(
            tokens=self.encoder.tokens,
            tokenizer=tokenizer_fingerprint(self.encoder.tokenizer),
            input=job.input,
            counts=counts,
            reasons=reasons,
            shards=tuple(
                Shard(job.name(number), note["size"], note["counts"]["examples"])
                for number, note in enumerate(whole)
            ),
        )
        job.write_file(SUMMARY, summary.write)
        job.remove_notes()
        return summary

    def _encode(
        self, number: int, file: Path, tell: Callable[[int], None]
    ) -> tuple[Counts, list[str]]:
        counts, reasons = Counts(), []
        with record_writer(file) as write:
            for done, index in enumerate(self.shards.part(number), 1):
                try:
                    record = self.source[index]
                    example = self.encoder.encode(record.value, name=record.name, line=record.line)
                except UserError as error:
                    counts += Counts(bad=1)
                    reasons += [str(error)] if len(reasons) < SHOWN else []
                else:
                    write(write_ids(example))
                    counts += Counts.of(example, self.encoder.tokens)
                tell(done)
        return counts, reasons


def _write_here(job: _Job, missing: list[int], progress: Progress) -> None:
    total = len(job.source)
    before = total - sum(len(job.shards.part(number)) for number in missing)

    for number in missing:
        start = before

        def tell(done: int, start: int = start) -> None:
            if done % _TOLD_EVERY == 0:
                progress(start + done, total)

        job.write(number, tell)
        before += len(job.shards.part(number))
        progress(before, total)


def _write_in_processes(job: _Job, missing: list[int], workers: int, progress: Progress) -> None:
    # Not forked: threads of this process may hold locks.
    context = multiprocessing.get_context("spawn")
    total = len(job.source)
    before = total - sum(len(job.shards.part(number)) for number in missing)
    # How many records of each shard are done; the last says that all have to stop.
    shared = context.RawArray("q", job.shards.shards + 1)
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(missing)), context, _start, (job, shared)
    )
    try:
        futures = {pool.submit(_work, number) for number in missing}
        while futures:
            done, futures = concurrent.futures.wait(
                futures, _POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION
            )
            for future in done:
                future.result()
            progress(before + sum(shared[:-1]), total)
    except BrokenProcessPool:
        raise UserError(
            "a process that tokenized was ended from outside, perhaps for lack of memory; run "
            "again with fewer workers: the shards that are whole are kept"
        ) from None
    finally:
        shared[-1] = 1
        pool.shutdown(cancel_futures=True)


_here: tuple[_Job, MutableSequence[int]] | None = None


def _start(job: _Job, shared: MutableSequence[int]) -> None:
    """Makes a process ready to write shards."""
    global _here
    _here = job, shared
    follow_parent()


def _work(number: int) -> None:
    assert _here is not None
    job, shared = _here

    def tell(done: int) -> None:
        shared[number] = done
        if shared[-1]:
            raise KeyboardInterrupt  # pressed there, if not here

    job.write(number, tell)
