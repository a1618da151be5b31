"""Shards written once into a folder, a note on each, so that a run that stopped can go on.

.partial-…     what is being written
.note-….json   what a shard holds that is whole; notes go when all shards are there
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import PARTIAL, reading, replacing, require_package

_NOTE = ".note-"
# Of what ArrayRecord offers, the smallest files that are read at tens of millions of tokens a
# second; a group is what has to be unpacked to have one record.
_OPTIONS = "group_size:1,zstd:1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Which shards a folder is to have, and of what."""

    folder: Path
    kind: str
    """What the names of the shards start with."""
    shards: int
    size: int
    """Records, or whatever else is divided among the shards, in its order."""
    input: dict[str, Any]
    """What the shards are made from and how, to tell another input."""

    def name(self, number: int) -> str:
        """Returns the name of a shard's file."""
        return f"{self.kind}-{number:05}-of-{self.shards:05}.arrayrecord"

    def part(self, number: int) -> range:
        """Returns which records a shard is made of."""
        return range(
            number * self.size // self.shards,
            (number + 1) * self.size // self.shards,
        )

    def missing(self) -> list[int]:
        """Returns the shards that are not there."""
        return [number for number in range(self.shards) if self.finished(number) is None]

    def require_same(self, there: dict[str, Any]) -> None:
        """Refuses shards that were made from something else.

        Raises:
            UserError: What differs is named.
        """
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

    def write(self, number: int, fill: Callable[[Path], dict[str, Any]]) -> None:
        """Writes one shard, which appears when it is whole.

        Args:
            number: Which.
            fill: Writes its records to a file, and returns what there is to note of them.

        Raises:
            UserError: The disk is full, or the folder cannot be written to.
        """
        with replacing(self.folder / self.name(number)) as partial:
            facts = {"input": self.input, **fill(partial), "size": partial.stat().st_size}
            with replacing(self._note(number)) as note:
                note.write_text(json.dumps(facts), encoding="utf-8")

    def write_file(self, name: str, fill: Callable[[Path], None]) -> None:
        """Writes another file of the folder, which appears when it is whole.

        Raises:
            UserError: See `write`.
        """
        with replacing(self.folder / name) as partial:
            fill(partial)

    def sweep(self) -> None:
        """Removes what was left half written.

        Raises:
            UserError: The shards written before are of another input.
        """
        for left in self.folder.glob(f"{PARTIAL}*"):
            left.unlink(missing_ok=True)
        for note in self.folder.glob(f"{_NOTE}*"):
            with reading(note):
                self.require_same(json.loads(note.read_text(encoding="utf-8"))["input"])

    def remove_notes(self) -> None:
        """Removes the notes, once what they say stands elsewhere, and what is half written."""
        for left in (*self.folder.glob(f"{PARTIAL}*"), *self.folder.glob(f"{_NOTE}*")):
            left.unlink(missing_ok=True)

    def _note(self, number: int) -> Path:
        return self.folder / f"{_NOTE}{number:05}.json"


@contextlib.contextmanager
def record_writer(file: Path) -> Iterator[Callable[[bytes], object]]:
    """Opens an ArrayRecord file; yields what writes one record.

    Raises:
        OSError: It cannot be written, which may show in a later record, or when it is closed.
    """
    module = require_package("array_record.python.array_record_module", "ArrayRecord")
    writer = module.ArrayRecordWriter(str(file), _OPTIONS)

    def told(act: Callable[..., object], *record: bytes) -> None:
        try:
            act(*record)
        except RuntimeError as error:  # as the library has it
            raise OSError(str(error)) from None

    try:
        yield functools.partial(told, writer.write)
    except BaseException:
        with contextlib.suppress(OSError):  # what came first says more
            told(writer.close)
        raise
    told(writer.close)


@contextlib.contextmanager
def exclusive(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Makes a folder, and refuses it, or waits, while another process writes to it.

    Raises:
        UserError: It cannot be made, or another process writes to it.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder} cannot hold shards: {error.strerror}") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is writing shards to {folder}") from None
    finally:
        os.close(held)


def digest(value: Any) -> str:
    """Returns the SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def follow_parent() -> None:
    """Has this process leave Ctrl-C to the one that started it, and end with that."""
    # Ctrl-C reaches all processes; the first one tells the others to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the first one was killed; else it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
