"""What `lwm data tokenize` does: encodes records once, into shards, and goes on where it stopped.

A shard appears when it is whole, with a note on it; when all are there, `shards.json` takes the
place of the notes.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, MutableSequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from lwm.console import Report, waiting
from lwm.data.fields import Encoder
from lwm.data.files import need, reading
from lwm.data.format import ExampleFormat
from lwm.data.sets import open_data, require_share
from lwm.data.shards import SHOWN, SUMMARY, Counts, Shard, Summary, fingerprint, write_ids
from lwm.data.sources import Source, identity
from lwm.errors import UserError

# Of what ArrayRecord offers, the smallest files that are read at tens of millions of tokens a
# second; a group is what has to be unpacked to have one record.
_OPTIONS = "group_size:1,zstd:1"
_PARTIAL, _NOTE = ".partial-", ".note-"
_POLL_SECONDS = 0.2
_TOLD_EVERY = 256


def write_shards(
    source: Source,
    encoder: Encoder,
    folder: Path,
    *,
    shards: int = 1,
    workers: int = 0,
    max_bad_share: float = 1.0,
    progress: Report = lambda done, total: None,
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
    need("array_record.python.array_record_module", "ArrayRecord")
    job = _Job(source=source, encoder=encoder, folder=folder.absolute(), shards=shards)
    with _alone(job.folder):
        if (job.folder / SUMMARY).is_file():
            summary = Summary.read(job.folder)
            job.require_same(summary.input)
            return summary
        job.sweep()
        missing = [number for number in range(shards) if job.finished(number) is None]
        if workers and missing:
            _write_in_processes(job, missing, workers, progress)
        else:
            _write_here(job, missing, progress)
        return job.finish(max_bad_share)


def run(
    files: tuple[str, ...],
    *,
    out: Path,
    model: str | None,
    tokenizer: Path | None,
    codes: int,
    shards: int,
    workers: int,
    format: ExampleFormat,
    max_bad_share: float,
) -> None:
    """Writes the records of some files as shards, and prints what these hold.

    Raises:
        UserError: Nothing can be read, or see `write_shards`.
    """
    require_share(max_bad_share)
    source, opened, space = open_data(files, model=model, tokenizer=tokenizer, codes=codes)
    encoder = Encoder(tokenizer=opened, tokens=space, format=format)
    with waiting("tokenizing", "records") as tell:
        summary = write_shards(
            source,
            encoder,
            out,
            shards=shards,
            workers=workers,
            max_bad_share=max_bad_share,
            progress=tell,
        )
    print(summary.table(), flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """All that a process needs in order to write a shard."""

    source: Source
    encoder: Encoder
    folder: Path
    shards: int
    input: dict[str, Any] = dataclasses.field(init=False)

    def __post_init__(self):
        tokenizer, encoder = self.encoder.tokenizer, self.encoder
        chat = [tokenizer.chat_template, tokenizer.add_bos, sorted(tokenizer.eos_ids)]
        facts = {
            "records": _digest([len(self.source), identity(self.source)]),
            "tokenizer": _digest([fingerprint(tokenizer), chat]),
            "tokens": dataclasses.asdict(encoder.tokens),
            "format": dataclasses.asdict(encoder.format),
            "number of shards": self.shards,
        }
        object.__setattr__(self, "input", facts)

    def name(self, number: int) -> str:
        return f"tokens-{number:05}-of-{self.shards:05}.arrayrecord"

    def records(self, number: int) -> range:
        size = len(self.source)
        return range(number * size // self.shards, (number + 1) * size // self.shards)

    def require_same(self, there: dict[str, Any]) -> None:
        differing = [name for name, value in self.input.items() if there.get(name) != value]
        if differing:
            raise UserError(
                f"{self.folder} holds shards of another input ({', '.join(differing)}): "
                "remove it, or choose another folder"
            )

    def finished(self, number: int) -> dict[str, Any] | None:
        """Returns the note on a shard, if that is whole."""
        shard, note = self.folder / self.name(number), self._note(number)
        if not note.is_file() or not shard.is_file():
            return None
        with reading(note):
            facts = json.loads(note.read_text(encoding="utf-8"))
            return facts if shard.stat().st_size == facts["size"] else None

    def write(self, number: int, tell: Callable[[int], None]) -> None:
        """Writes one shard, which appears when it is whole.

        Args:
            number: Which.
            tell: Called after each record with how many are done.
        """
        partial = self.folder / f"{_PARTIAL}{number:05}-{os.getpid()}"
        try:
            with reading(self.folder / self.name(number), "written"):
                counts, reasons = self._encode(number, partial, tell)
                facts = {
                    "input": self.input,
                    "counts": dataclasses.asdict(counts),
                    "reasons": reasons,
                    "size": partial.stat().st_size,
                }
                note = partial.with_suffix(".json")
                note.write_text(json.dumps(facts), encoding="utf-8")
                os.replace(note, self._note(number))
                os.replace(partial, self.folder / self.name(number))
        finally:
            for left in (partial, partial.with_suffix(".json")):
                left.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what was left half written.

        Raises:
            UserError: The shards written before are of another input.
        """
        for left in self.folder.glob(f"{_PARTIAL}*"):
            left.unlink(missing_ok=True)
        for note in self.folder.glob(f"{_NOTE}*"):
            with reading(note):
                self.require_same(json.loads(note.read_text(encoding="utf-8"))["input"])

    def finish(self, max_bad_share: float) -> Summary:
        """Writes what all shards are, in place of the notes on each."""
        notes = [self.finished(number) for number in range(self.shards)]
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
            tokenizer=fingerprint(self.encoder.tokenizer),
            input=self.input,
            counts=counts,
            reasons=reasons,
            shards=tuple(
                Shard(self.name(number), note["size"], note["counts"]["examples"])
                for number, note in enumerate(whole)
            ),
        )
        partial = self.folder / f"{_PARTIAL}{SUMMARY}"
        with reading(self.folder / SUMMARY, "written"):
            summary.write(partial)
            os.replace(partial, self.folder / SUMMARY)
        for number in range(self.shards):
            self._note(number).unlink()
        return summary

    def _note(self, number: int) -> Path:
        return self.folder / f"{_NOTE}{number:05}.json"

    def _encode(
        self, number: int, file: Path, tell: Callable[[int], None]
    ) -> tuple[Counts, list[str]]:
        module = need("array_record.python.array_record_module", "ArrayRecord")
        writer = module.ArrayRecordWriter(str(file), _OPTIONS)
        counts, reasons = Counts(), []
        try:
            for done, index in enumerate(self.records(number), 1):
                try:
                    record = self.source[index]
                    example = self.encoder.encode(record.value, name=record.name, line=record.line)
                except UserError as error:
                    counts += Counts(bad=1)
                    reasons += [str(error)] if len(reasons) < SHOWN else []
                else:
                    writer.write(write_ids(example))
                    counts += Counts.of(example, self.encoder.tokens)
                tell(done)
        finally:
            writer.close()
        return counts, reasons


def _write_here(job: _Job, missing: list[int], progress: Report) -> None:
    total = len(job.source)
    before = total - sum(len(job.records(number)) for number in missing)

    for number in missing:
        start = before

        def tell(done: int, start: int = start) -> None:
            if done % _TOLD_EVERY == 0:
                progress(start + done, total)

        job.write(number, tell)
        before += len(job.records(number))
        progress(before, total)


def _write_in_processes(job: _Job, missing: list[int], workers: int, progress: Report) -> None:
    # Not forked: threads of this process may hold locks.
    context = multiprocessing.get_context("spawn")
    total = len(job.source)
    before = total - sum(len(job.records(number)) for number in missing)
    # How many records of each shard are done; the last says that all have to stop.
    shared = context.RawArray("q", job.shards + 1)
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
        shared[job.shards] = 1
        pool.shutdown(cancel_futures=True)


_here: tuple[_Job, MutableSequence[int]] | None = None


def _start(job: _Job, shared: MutableSequence[int]) -> None:
    """Makes a process ready to write shards."""
    global _here
    _here = job, shared
    # Ctrl-C reaches all processes; the first one tells the others to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the first one was killed; else it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(number: int) -> None:
    assert _here is not None
    job, shared = _here

    def tell(done: int) -> None:
        shared[number] = done
        if shared[job.shards]:
            raise KeyboardInterrupt  # pressed there, if not here

    job.write(number, tell)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes a folder, and refuses it while another process writes to it."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder} cannot hold shards: {error.strerror}") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is writing shards to {folder}") from None
    finally:
        os.close(held)
