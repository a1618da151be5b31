"""A JSONL file of answers that survives a kill: the same command goes on where it stopped."""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lwm.data.prompts import Prompt
from lwm.errors import UserError
from lwm.eval.results import difference
from lwm.files import (
    json_line,
    parse_json,
    read_versioned,
    replacing,
    require_absent,
    require_writable,
    write_versioned,
    writing,
)

FIELDS = ("index", "number", "text", "ids", "logprobs", "finish_reason", "usage")
"""Fields that an answer adds to those of its prompt."""
_VERSION = 1


@contextlib.contextmanager
def open_answers(
    path: Path, prompts: Sequence[Prompt], settings: Mapping[str, Any], *, overwrite: bool
) -> "Generator[AnswerFile]":
    """Opens a file for answers to prompts, or goes on with one; no other process writes to it.

    What the answers depend on is in a file beside it, `.run.json`.

    Args:
        path: The file. One that stays empty is removed.
        prompts: The prompts, whose fields the answers keep.
        settings: All else that decides the answers and is known before the model is.
        overwrite: Starts anew; the first answer replaces what is in the file.

    Raises:
        UserError: The file cannot be written, belongs to other prompts or settings, or is being
            written; or a prompt has a field of an answer.
    """
    for prompt in prompts:
        if taken := sorted(set(FIELDS) & set(prompt.fields)):
            raise UserError(f"{prompt.place}: the answer has a field {taken[0]!r}, too; rename it")
    require_writable(path)
    with _locked(path) as file:
        yield AnswerFile(path, file, prompts, settings, overwrite=overwrite)


class AnswerFile:
    """Answers so far, in a file that `open_answers` has locked."""

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        prompts: Sequence[Prompt],
        settings: Mapping[str, Any],
        *,
        overwrite: bool,
    ):
        """Reads what is there; see `open_answers`."""
        self.path, self._file, self._prompts = path, file, prompts
        self._beside = path.with_name(f"{path.name}.run.json")
        self._is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        self._header = _plain({"prompts": _digest(prompts), **settings})
        self._begins = overwrite or not os.fstat(file.fileno()).st_size
        self.done: set[tuple[int, int]] = set()
        """Numbers of prompts, and of answers to each, that are in the file."""
        if self._begins:
            if not self._is_regular:
                require_absent(path, overwrite=overwrite)
            return
        if not self._beside.exists():
            require_absent(path, overwrite=False)
        self._require_same()
        self._read()

    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Adds what is known once the model is loaded.

        Raises:
            UserError: The answers in the file were given with others.
        """
        self._header |= _plain(settings)
        if not self._begins:
            self._require_same()

    def append(self, index: int, number: int, answer: Mapping[str, Any]) -> None:
        """Appends an answer, and returns when it is on the disk."""
        if self._begins and self._is_regular:
            with replacing(self._beside) as partial:
                os.ftruncate(self._file.fileno(), 0)
                write_versioned(self._header, partial, _VERSION)
        self._begins = False
        fields = self._prompts[index].fields
        with writing(self.path):
            self._file.write(json_line({**fields, "index": index, "number": number, **answer}))
            self._file.flush()
            if self._is_regular:
                os.fsync(self._file.fileno())
        self.done.add((index, number))

    def _require_same(self) -> None:
        there = read_versioned(self._beside, _VERSION)
        known = {key: value for key, value in there.items() if key in self._header}
        found = difference(known, self._header)
        if found:
            reason = (
                "to other prompts" if found.startswith("prompts ") else f"of another run: {found}"
            )
            raise UserError(
                f"{self.path} holds answers {reason}; choose another --out, or give --overwrite "
                "to replace it"
            )

    def _read(self) -> None:
        """Notes the answers that are there, and removes an incomplete last line."""
        size = 0
        with writing(self.path), self.path.open("rb") as lines:
            for at, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file.fileno(), size)
                    return
                size += len(line)
                self.done.add(self._check(line, at))

    def _check(self, line: bytes, at: int) -> tuple[int, int]:
        """Returns the numbers of the prompt and of the answer of a line."""
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, AttributeError):
            found = parse_json(line)
            index, number = found["index"], found["number"]
            fields = {key: value for key, value in found.items() if key not in FIELDS}
            is_new = (index, number) not in self.done and index >= 0
            if is_new and fields == _plain(self._prompts[index].fields):
                return index, number
        raise UserError(
            f"{self.path}, line {at}: no answer to one of these prompts; choose another --out, or "
            "give --overwrite to replace it"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Generator[BinaryIO]:
    """Opens a file to append to it, and locks it until the block or the process ends."""
    import fcntl

    is_new = not path.exists()
    while True:
        with writing(path):
            file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(
                f"{path} is being written by another process; wait for it, or choose another --out"
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        # Another process may have removed the file since it was opened.
        if _is_there(path, file):
            break
        file.close()
    try:
        yield file
    finally:
        if is_new and _is_there(path, file) and not os.fstat(file.fileno()).st_size:
            path.unlink()
        with contextlib.suppress(OSError):  # it has been reported
            file.close()


def _is_there(path: Path, file: BinaryIO) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _digest(prompts: Sequence[Prompt]) -> str:
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(json_line(prompt.fields))
    return found.hexdigest()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values as a line of JSON holds them."""
    return json.loads(json_line(values))
