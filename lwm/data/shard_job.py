"""Writes shards into a folder, with a note on each, so that an interrupted run can be resumed.

.partial-…         a file being written
.note-….json       description of a finished shard; removed once all shards are finished
.note-files.json   fingerprints of the input; removed then, too
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from lwm.errors import UserError
from lwm.files import PARTIAL, exclusive, reading, replacing, require_package
from lwm.fingerprint import Fingerprints, content_of, require_same
from lwm.progress import Progress

_NOTE = ".note-"
_INPUT = f"{_NOTE}files.json"
# The smallest files that still read at tens of millions of tokens per second; a group is the
# number of records that are decompressed together.
_OPTIONS = "group_size:1,zstd:1"


@runtime_checkable
class _Shard(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def content(self) -> str: ...


@runtime_checkable
class _Summary(Protocol):
    @property
    def input(self) -> dict[str, Any]: ...
    @property
    def files(self) -> Fingerprints: ...
    @property
    def shards(self) -> tuple[_Shard, ...]: ...
    def write(self, file: Path, /) -> None: ...


S = TypeVar("S", bound=_Summary)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Description of the shards that a folder is to hold."""

    folder: Path
    kind: str
    """Prefix of the names of the shards."""
    shards: int
    size: int
    """Number of records (or other units) that are divided among the shards, in order."""
    input: dict[str, Any]
    """Digests of the input and settings."""
    files: Fingerprints = dataclasses.field(default_factory=dict)
    """Fingerprints of the files of the input."""

    def name(self, number: int) -> str:
        """Returns the name of a shard's file."""
        return f"{self.kind}-{number:05}-of-{self.shards:05}.arrayrecord"

    def part(self, number: int) -> range:
        """Returns the range of records of a shard."""
        return range(
            number * self.size // self.shards,
            (number + 1) * self.size // self.shards,
        )

    def missing(self) -> list[int]:
        """Returns the numbers of the shards that are unfinished or damaged."""

        def is_whole(number: int) -> bool:
            note = self.finished(number)
            if note is None:
                return False
            return self._has(self.name(number), note["size"], note.get("content", ""))

        with ThreadPoolExecutor() as pool:
            whole = pool.map(is_whole, range(self.shards))
            return [number for number, each in enumerate(whole) if not each]

    def num_finished(self, missing: Sequence[int]) -> int:
        """Returns the number of records in all but the missing shards."""
        return self.size - sum(len(self.part(number)) for number in missing)

    def complete(
        self,
        summary: str,
        read: Callable[[Path], S],
        write: Callable[[list[int]], None],
        finish: Callable[[], S],
    ) -> S:
        """Returns the summary of the folder, after writing the missing shards and the summary.

        Shards of a finished folder that are missing or damaged are made again.

        Raises:
            UserError: The folder holds shards of another input or is being written to.
        """
        require_package("array_record.python.array_record_module", "ArrayRecord")
        with exclusive(self.folder):
            found: S | None = None
            if (self.folder / summary).is_file():
                found = read(self.folder)
                self.require_same(found.input, found.files)
                self._repair(found.shards, write)
            else:
                self.sweep()
                if missing := self.missing():
                    write(missing)
            made = self._described(found or finish())
            if made != found:
                self.write_file(summary, made.write)
            self.remove_notes()
            return made

    def _repair(self, shards: Sequence[_Shard], write: Callable[[list[int]], None]) -> None:
        """Makes the damaged shards of a finished folder again.

        Raises:
            UserError: One differs now, so that the summary would not describe it.
        """
        with ThreadPoolExecutor() as pool:
            whole = pool.map(lambda each: self._has(each.name, each.size, each.content), shards)
            damaged = [number for number, is_whole in enumerate(whole) if not is_whole]
        if damaged:
            write(damaged)
        for shard in (shards[number] for number in damaged):
            if not self._has(shard.name, shard.size, shard.content):
                raise UserError(
                    f"{self.folder / shard.name} was damaged, and made again it is another one; "
                    f"remove {self.folder}, and tokenize again"
                )

    def _described(self, summary: S) -> S:
        """Adds the fingerprints that a summary or a note of an earlier version lacks."""
        value: Any = summary
        shards = tuple(map(self._with_content, value.shards))
        return dataclasses.replace(value, files=value.files or self.files, shards=shards)

    def _with_content(self, shard: Any) -> Any:
        if shard.content:
            return shard
        content = content_of(self.folder / shard.name)
        # A named tuple, or a dataclass.
        replace = getattr(shard, "_replace", functools.partial(dataclasses.replace, shard))
        return replace(content=content)

    def _has(self, name: str, size: int, content: str) -> bool:
        """Returns whether a shard is there as it was written."""
        file = self.folder / name
        if not file.is_file() or file.stat().st_size != size:
            return False
        return not content or content_of(file) == content

    def write_each(
        self,
        missing: Sequence[int],
        write: Callable[[int, Callable[[int], None]], None],
        progress: Progress,
        *,
        every: int = 1,
    ) -> None:
        """Writes shards in turn, and reports the number of records done in all, `every` records."""
        before = self.num_finished(missing)
        for number in missing:
            size = len(self.part(number))

            def report(done: int, before: int = before, size: int = size) -> None:
                if done % every == 0 or done == size:
                    progress(before + done, self.size)

            write(number, report)
            before += size

    def require_same(self, there: dict[str, Any], files: Fingerprints) -> None:
        """Refuses shards of another input.

        Args:
            there: `input` of these shards.
            files: `files` of these shards; empty if an earlier version wrote them.

        Raises:
            UserError: The difference is named.
        """
        differing = [name for name, value in self.input.items() if there.get(name) != value]
        if differing:
            raise UserError(
                f"{self.folder} holds shards of another input ({', '.join(differing)}): "
                "remove it, or choose another folder"
            )
        remedy = f"restore it, or remove {self.folder} and tokenize again"
        require_same(files, self.files, remedy)

    def finished(self, number: int) -> dict[str, Any] | None:
        """Returns the note on a shard; None if the shard is not finished."""
        shard, note = self.folder / self.name(number), self._note(number)
        if not note.is_file() or not shard.is_file():
            return None
        with reading(note):
            facts = json.loads(note.read_text(encoding="utf-8"))
            return facts if shard.stat().st_size == facts["size"] else None

    def write(self, number: int, fill: Callable[[Path], dict[str, Any]]) -> None:
        """Writes one shard; it appears only when it is finished.

        `fill` writes the records to a file, and returns the values of the note.

        Raises:
            UserError: The disk is full, or the folder is not writable.
        """
        with replacing(self.folder / self.name(number)) as partial:
            facts = {"input": self.input, **fill(partial), "size": partial.stat().st_size}
            facts["content"] = content_of(partial)
            self._write_json(self._note(number), facts)

    def write_file(self, name: str, fill: Callable[[Path], None]) -> None:
        """Writes another file of the folder; it appears only when it is finished.

        Raises:
            UserError: See `write`.
        """
        with replacing(self.folder / name) as partial:
            fill(partial)

    def sweep(self) -> None:
        """Removes unfinished files, and notes what files the input has.

        Raises:
            UserError: The finished shards are of another input.
        """
        for left in self.folder.glob(f"{PARTIAL}*"):
            left.unlink(missing_ok=True)
        for note in sorted(self.folder.glob(f"{_NOTE}*")):
            with reading(note):
                there = json.loads(note.read_text(encoding="utf-8"))
                self.require_same(there["input"], there.get("files", {}))
        if not (self.folder / _INPUT).exists():
            self._write_json(self.folder / _INPUT, {"input": self.input, "files": self.files})

    def _write_json(self, file: Path, value: dict[str, Any]) -> None:
        with replacing(file) as partial:
            partial.write_text(json.dumps(value), encoding="utf-8")

    def remove_notes(self) -> None:
        """Removes the notes and unfinished files, once there is a summary."""
        for left in (*self.folder.glob(f"{PARTIAL}*"), *self.folder.glob(f"{_NOTE}*")):
            left.unlink(missing_ok=True)

    def _note(self, number: int) -> Path:
        return self.folder / f"{_NOTE}{number:05}.json"


@contextlib.contextmanager
def record_writer(file: Path) -> Iterator[Callable[[bytes], object]]:
    """Opens an ArrayRecord file; yields a function that writes one record.

    Raises:
        OSError: Writing failed; the library may report it later, or when the file is closed.
    """
    module = require_package("array_record.python.array_record_module", "ArrayRecord")
    writer = module.ArrayRecordWriter(str(file), _OPTIONS)

    def checked(act: Callable[..., object], *record: bytes) -> None:
        try:
            act(*record)
        except RuntimeError as error:  # the library's way
            raise OSError(str(error)) from None

    try:
        yield functools.partial(checked, writer.write)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says more
            checked(writer.close)
        raise
    checked(writer.close)


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def process_pool(workers: int, shared: Any) -> ProcessPoolExecutor:
    """Starts processes for `run_shared`, each with a copy of `shared`; they end with this one."""
    # Not forked: threads of this process may hold locks.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (shared,))


def run_shared(task: Callable[[Any, int], T], number: int) -> T:
    """Runs a task of a process pool with the value that the pool shares."""
    return task(_shared, number)


_shared: Any = None


def _start(shared: Any) -> None:
    global _shared
    _shared = shared
    # Ctrl-C reaches all processes; the first one stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent was killed; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
