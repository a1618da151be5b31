"""Fingerprints of files: they show that work goes on with the files that it began with.

A file up to 1 GB is read whole. Of a larger one, and where more than 16 GB would be read in all,
less is read, so that a start does not take minutes; the time of modification then counts, too.
Nothing is skipped because size and time are as before: a write that follows at once may leave both,
and tools restore times.
"""

import concurrent.futures
import glob
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from lwm.errors import UserError
from lwm.files import is_data, reading

Fingerprints = dict[str, str]
"""Fingerprints of files, by names that do not depend on where the files are."""

WHOLE = 10**9
"""Bytes of the largest file that is read whole."""
TOGETHER = 16 * WHOLE
"""Bytes to read of a set at most; of larger ones nothing is read."""
_BLOCK, _BLOCKS = 10**6, 64
_TIME = " modified "
_THREADS = 8
_DOCUMENTS = (".md", ".pdf", ".png", ".jpg", ".svg", ".html")


def content_of(path: Path) -> str:
    """Returns the size of a file with a digest of its content.

    Above 1 GB, the digest is of both ends and of 64 blocks of 1 MB, evenly spread.

    Raises:
        UserError: The file cannot be read.
    """
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE:
            return f"{size} bytes, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
        return f"{size} bytes, sha256 of blocks {_digest_of_blocks(file, size)}"


def fingerprint(path: Path, *, read: bool = True) -> str:
    """Returns the fingerprint of a file: its content, or what stands for it.

    Where not all is read, the time of modification is part of it: with another time, the file
    counts as another one, as the part that was not read may differ.

    Args:
        path: A file; a missing one, or a pipe, has a fingerprint as well.
        read: Whether its content is read at all.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):
        return "missing"
    if not stat.S_ISREG(found.st_mode):
        return "no plain file"
    content = content_of(path) if read else f"{found.st_size} bytes"
    return content if read and found.st_size <= WHOLE else f"{content}{_TIME}{found.st_mtime_ns}"


def fingerprints(files: Mapping[str, Path]) -> Fingerprints:
    """Returns the fingerprints of a set of files.

    Raises:
        UserError: A file cannot be read.
    """
    read = sum(map(_cost, files.values())) <= TOGETHER
    # Hashing releases the interpreter lock.
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda path: fingerprint(path, read=read), files.values())
        return dict(zip(files, found, strict=True))


def named(files: Iterable[Path], prefix: str = "") -> dict[str, Path]:
    """Returns files by their names without folders; those that share a name are numbered."""
    found: dict[str, Path] = {}
    counts: Counter[str] = Counter()
    for path in files:
        counts[path.name] += 1
        count = counts[path.name]
        found[f"{prefix}{path.name} ({count})" if count > 1 else f"{prefix}{path.name}"] = path
    return found


def model_files(path: Path) -> list[Path]:
    """Returns the files that decide what a model computes: of its folder, or beside its file.

    Those of the VQGAN in a model's folder are among them.
    """
    if path.is_dir():
        inside = [*sorted(path.iterdir()), *sorted(path.glob("vqvae/*"))]
        files = [file for file in inside if file.is_file() and is_data(file.name)]
        return [file for file in files if file.suffix.lower() not in _DOCUMENTS]
    first, split, _ = path.name.partition("-00001-of-")
    beside = [f"{glob.escape(first)}-*-of-*"] if split else []
    if not path.suffix and path.name != "vqgan":  # LWM's parameters
        beside += ["tokenizer*", "*config.json", "metadata.pkl"]
    found = {file for pattern in beside for file in path.parent.glob(pattern)}
    return sorted({path, *(file for file in found if file.is_file() and is_data(file.name))})


def require_same(
    before: Fingerprints, now: Fingerprints, remedy: str, *, paths: Mapping[str, Path] | None = None
) -> None:
    """Refuses files that are not those of before.

    Args:
        before: Fingerprints of then; none, of work that an earlier version began, fit all.
        now: Fingerprints of now.
        remedy: What the user can do, for the message.
        paths: Where the files are, for the message.

    Raises:
        UserError: The first file that differs is named.
    """
    for name in [*now, *before] if before else []:
        then, there = before.get(name), now.get(name)
        if then == there:
            continue
        if then is None:
            reason = "is new"
        elif there is None or there == "missing":
            reason = "is not there any more"
        elif _TIME in then and same_content(then, there):
            reason = (
                "has another time of modification, and is too large to be compared as a whole "
                "(cp -p keeps the time)"
            )
        else:
            reason = "has changed"
        raise UserError(f"{(paths or {}).get(name, name)} {reason} since the start; {remedy}")


def same_content(one: str, other: str | None) -> bool:
    """Returns whether two fingerprints are of the same content, whenever it was written."""
    return other is not None and one.partition(_TIME)[0] == other.partition(_TIME)[0]


def _cost(path: Path) -> int:
    """Returns the bytes that a fingerprint reads."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        return 0
    return size if size <= WHOLE else _BLOCK * (_BLOCKS + 2)


def _digest_of_blocks(file: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    # The first and the last of these places are the ends.
    for number in range(_BLOCKS + 2):
        file.seek(number * (size - _BLOCK) // (_BLOCKS + 1))
        digest.update(file.read(_BLOCK))
    return digest.hexdigest()
