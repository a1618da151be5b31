"""Files: errors in one line, the user's own files, atomic writes, JSON."""

import contextlib
import errno
import glob
import hashlib
import importlib
import importlib.resources
import json
import operator
import os
import shlex
import stat
import tempfile
from collections.abc import Generator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, SupportsIndex

from lwm.errors import UserError, is_full_disk, is_panic, system_reason
from lwm.limits import require_bounded

ASSETS = Path(str(importlib.resources.files("lwm"))) / "assets"
"""Files that come with the package."""
PARTIAL = ".partial-"
"""Start of the names of files that are being written."""
_EDGE = 1 << 16
_MOST_NESTED = 100
_LONGEST = 300
# Folders and files that macOS, Windows and Synology put beside the user's.
_OF_SYSTEMS = ("__macosx", "@eadir", "$recycle.bin", "thumbs.db", "ehthumbs.db", "desktop.ini")
_PACKED = {
    ".gz": (b"\x1f\x8b", "gunzip -k"),
    ".bz2": (b"BZh", "bunzip2 -k"),
    ".xz": (b"\xfd7zXZ", "unxz -k"),
    ".zst": (b"\x28\xb5\x2f\xfd", "unzstd"),
    ".lz4": (b"\x04\x22\x4d\x18", "unlz4"),
    ".7z": (b"7z\xbc\xaf", "7z x"),
    ".rar": (b"Rar!", "unrar x"),
    ".zip": (b"PK\x03\x04", "unzip"),
}


@contextlib.contextmanager
def reading(path: Path | str, what: str = "read") -> Generator[None]:
    """Turns an error while a file is read into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # libraries raise errors of any type
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise UserError(f"{path} cannot be {what}: {reason_of(error)}") from None


@contextlib.contextmanager
def writing(path: Path | str) -> Generator[None]:
    """Turns an error of the system while a file is written into one line that names it.

    Raises:
        UserError: The disk is full, or the file cannot be written. Other errors pass.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_full_disk(error):
            reason = f"{os.strerror(errno.ENOSPC)}; make room, or choose another disk"
        elif found := system_reason(error):
            reason = f"{found}; choose another place"
        else:
            raise
        raise UserError(f"{path} cannot be written: {reason}") from None


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Generator[Path]:
    """Yields a partial file beside `path`, which replaces it once the block ends without error.

    Readers see the old file or the new one, never half of it. After an error nothing is left.

    Args:
        path: The file to write; its folder exists.
        durable: Whether the data reaches the disk first, so that a power cut loses none of it.

    Raises:
        UserError: See `writing`.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}-{os.getpid()}")
    with writing(path):
        try:
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)  # safetensors hides its files from all but their owner
            if durable:
                with partial.open("rb") as written:
                    os.fsync(written.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def reason_of(error: BaseException) -> str:
    """Returns the message of an exception, in one line that is not long."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    line = reason.splitlines()[0]
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


def require_package(module: str, what: str, extra: str = "data") -> Any:
    """Imports an optional library.

    Raises:
        UserError: It is not installed; the message names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise UserError(f"{what} needs {package}: pip install 'lwm[{extra}]'") from None


def is_data(name: str | PurePath) -> bool:
    """Returns whether a file is the user's, by its path in a folder or an archive.

    Hidden files and folders are not, such as `.git`, `.DS_Store` and macOS' `._*`, nor what systems
    put beside the files of users, such as `__MACOSX`, `Thumbs.db` and `desktop.ini`.
    """
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") and part != ".." for part in parts)
    return not hidden and not any(part.lower() in _OF_SYSTEMS for part in parts)


def matching(pattern: str) -> list[str]:
    """Returns the paths that match a shell pattern, sorted, without those that are not data."""
    parts = PurePath(pattern).parts
    fixed = next((at for at, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    found = sorted(glob.glob(pattern, recursive=True))
    if any(part.startswith(".") for part in parts[fixed:]):  # hidden files are asked for
        return found
    return [path for path in found if is_data(PurePath(*PurePath(path).parts[fixed:]))]


def require_unpacked(path: Path | str, head: bytes) -> None:
    """Refuses a compressed file by its first bytes, or, where these are not known, by its suffix.

    Raises:
        UserError: It is compressed; the command that unpacks it is named.
    """
    suffix = PurePath(path).suffix.lower()
    for ending, (magic, command) in _PACKED.items():
        if head.startswith(magic) if head else suffix == ending:
            unpack = f"{command} {shlex.quote(str(path))}"
            raise UserError(f"{path} is compressed; unpack it first: {unpack}")


def is_packed(name: str, endings: tuple[str, ...]) -> bool:
    """Returns whether a name is that of a compressed file that ends in one of `endings` inside."""
    inner = PurePath(name)
    return inner.suffix.lower() in _PACKED and inner.stem.lower().endswith(endings)


def state_of(path: Path) -> tuple[int, int]:
    """Returns size and modification time of a file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def edges_of(path: Path) -> list:
    """Returns a file's name, its size, and a digest of its first and last bytes.

    Equal for copies, and almost certainly different for other content; two reads at any size.
    """
    with reading(path), path.open("rb") as file:
        size = path.stat().st_size
        digest = hashlib.sha256(file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return [path.name, size, digest.hexdigest()]


def within(index: SupportsIndex, length: int) -> int:
    """Returns an index as an int; raises IndexError if it is out of range."""
    number = operator.index(index)
    if not 0 <= number < length:
        raise IndexError(f"record {number} of {length}")
    return number


def require_size(file: Path, size: int) -> None:
    """Refuses a shard whose size is not the one it was written with.

    Raises:
        UserError: The size differs, or the file is missing.
    """
    with reading(file):
        status = file.stat()
    found = status.st_size
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise UserError(f"{file} is no file; restore it from a copy, or tokenize again")
    if found != size:
        raise UserError(
            f"{file} is damaged: it has {found} bytes in place of {size}; restore it from a "
            "copy, or tokenize again"
        )


def named_file(folder: Path, name: Any, by: Path | str) -> Path:
    """Returns the path of a file that another file of its folder names.

    The file itself may be a link, as in the hub's cache.

    Args:
        folder: The folder.
        name: The name, from the other file.
        by: The other file, for messages.

    Raises:
        UserError: It is no name, or leads out of the folder.
    """
    inside = isinstance(name, str) and "\0" not in name and ".." not in Path(name).parts
    if inside and (parts := Path(name).parts) and not Path(name).is_absolute():
        above = os.path.realpath(folder.joinpath(*parts[:-1]))
        if Path(above).is_relative_to(os.path.realpath(folder)):
            return folder / name
    raise UserError(f"{by} names {json.dumps(name)[:80]}, which is no file in {folder}")


def make_folder(path: Path, *, shown: Path | None = None) -> None:
    """Makes a folder if it does not exist, and refuses one in which no file can be written.

    Args:
        path: The folder.
        shown: Its name in messages, if this is not its path.

    Raises:
        UserError: The reason.
    """
    with writing(shown or path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


@contextlib.contextmanager
def exclusive(folder: Path, *, shown: Path | None = None, wait: bool = False) -> Generator[None]:
    """Makes a folder and locks it; if another process holds the lock, fails or waits.

    The folder itself is locked, so that no lock file stays in it. The end of the process releases
    the lock, also when it is killed. A folder that is made here and stays empty is removed.

    Args:
        folder: The folder.
        shown: Its name in messages, if this is not its path.
        wait: Whether to wait for the other process.

    Raises:
        UserError: No file can be written there, or another process holds the lock.
    """
    import fcntl

    is_new = not folder.exists()
    while True:
        make_folder(folder, shown=shown)
        with writing(shown or folder):
            held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise UserError(
                f"{shown or folder} is being written by another process; wait for it, or choose "
                "another folder"
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        # Another process may have moved or removed the folder since it was opened.
        if _is_there(folder, held):
            break
        os.close(held)
    try:
        yield
    finally:
        if is_new and _is_there(folder, held):
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing was written
        os.close(held)


def _is_there(folder: Path, opened: int) -> bool:
    return folder.is_dir() and os.path.samestat(os.fstat(opened), folder.stat())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file by `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def json_line(value: Any) -> bytes:
    """Returns plain values as a line of JSON; halves of surrogate pairs become its escapes."""
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def require_writable(file: Path) -> None:
    """Refuses a file that cannot be written, before time is spent on its contents.

    Raises:
        UserError: It is a folder, or its own folder is missing or read-only.
    """
    if not file.parent.is_dir() or file.is_dir():
        raise UserError(f"{file} cannot be written; choose a file in a folder that exists")
    with writing(file):
        tempfile.TemporaryFile(dir=file.parent).close()


def require_absent(file: Path, *, overwrite: bool) -> None:
    """Refuses to replace a file without being asked to.

    Raises:
        UserError: It exists.
    """
    if file.exists() and not overwrite:
        raise UserError(f"{file} exists; choose another --out, or give --overwrite to replace it")


def parse_json(text: str | bytes) -> Any:
    """Parses JSON of any origin.

    Raises:
        ValueError: It is no JSON, or nested so deeply that code which follows it would fail.
    """
    too_deep = "it is nested too deeply"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    openings = sum(map(text.count, "[{" if isinstance(text, str) else (b"[", b"{")))
    if openings <= _MOST_NESTED or not isinstance(value, dict | list):
        return value
    level = [value]
    for _ in range(_MOST_NESTED):
        rows = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for row in rows for inner in row if isinstance(inner, dict | list)]
        if not level:
            return value
    raise ValueError(too_deep)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: The file is missing, cannot be read, or is no JSON object.
    """
    try:
        require_bounded(path)
        values = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; is {path.parent} a model folder?") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object")
    return values


def read_versioned(file: Path, version: int) -> dict[str, Any]:
    """Reads the values that `write_versioned` wrote.

    Raises:
        UserError: The file is damaged, or of another version.
    """
    with reading(file):
        value = parse_json(file.read_text(encoding="utf-8"))
        if (found := value.pop("version")) != version:
            raise UserError(f"{file} is of version {found}; this lwm reads {version}")
        return value


def write_versioned(value: dict[str, Any], file: Path, version: int) -> None:
    """Writes plain values with the version of their format."""
    text = json.dumps({"version": version, **value}, indent=1, ensure_ascii=False)
    # Paths may hold bytes that are no text; JSON reads their escapes.
    file.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
