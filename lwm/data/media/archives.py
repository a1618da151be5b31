"""Folders, zip files and tar files, each as names and what lies there; nothing is unpacked.

Trees can be pickled, and what they hold open is opened again where it is needed.
"""

import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

from lwm.errors import UserError
from lwm.files import edges_of, reading, reason_of

MEMBER_BYTES = 1 << 30
"""Of a member of an archive, which is read whole; files in folders may be of any size."""


_ZIPPED = b"PK\x03\x04", b"PK\x05\x06"


@runtime_checkable
class Tree(Protocol):
    """Files by number, in an order that does not change."""

    names: list[str]
    """As paths within the tree."""
    faults: list[tuple[str, str]]
    """What could not be listed, and why."""

    def read(self, number: int) -> bytes | Path:
        """Returns a file's content, or where that is."""
        ...

    def identity(self) -> list:
        """Returns what tells this tree from another."""
        ...


class Folder:
    """The files of a folder and of those in it, by name; hidden ones are passed over."""

    def __init__(
        self, root: Path, files: list[Path] | None = None, *, leave: Path | None = None
    ) -> None:
        """Lists the files.

        Args:
            root: What names are relative to.
            files: The only ones to list; None is all.
            leave: A folder to pass over, where it is among those in it.
        """
        self._root = root
        self.names: list[str] = []
        self.faults: list[tuple[str, str]] = []
        self._sizes: list[int] = []
        if files is None:
            names = self._walk(leave)
        else:
            names = (os.path.relpath(file, root) for file in files)
        for name in sorted(names):
            try:
                found = os.stat(root / name)
            except OSError as error:
                self.faults.append((_text(name), reason_of(error)))
                continue
            # A pipe would be waited for.
            if stat.S_ISREG(found.st_mode):
                self.names.append(name)
                self._sizes.append(found.st_size)

    def read(self, number: int) -> bytes | Path:
        """Returns a file's path."""
        return self._root / self.names[number]

    def identity(self) -> list:
        """Returns the names and sizes of all files."""
        named = zip(map(_text, self.names), self._sizes, strict=True)
        return [*map(list, named), *map(list, self.faults)]

    def _walk(self, leave: Path | None) -> Iterator[str]:
        def note(error: OSError) -> None:
            name = os.path.relpath(error.filename, self._root)
            self.faults.append((_text(name), reason_of(error)))

        seen = set() if leave is None else {os.path.realpath(leave)}
        for folder, inner, files in os.walk(self._root, onerror=note, followlinks=True):
            # A link may lead back to where we came from.
            if (real := os.path.realpath(folder)) in seen:
                inner.clear()
                continue
            seen.add(real)
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            above = os.path.relpath(folder, self._root)
            for name in files:
                if not name.startswith("."):
                    yield name if above == "." else f"{above}/{name}"


class Zip:
    """The members of a zip file, in their order; hidden ones are passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: zipfile.ZipFile | None = None
        with reading(path), zipfile.ZipFile(path) as file:
            self._members = [
                info for info in file.infolist() if not info.is_dir() and is_seen(info.filename)
            ]
        self.names = [info.filename for info in self._members]
        self.faults: list[tuple[str, str]] = []

    def read(self, number: int) -> bytes | Path:
        """Returns what a member holds.

        Raises:
            UserError: It is encrypted, damaged, or too large.
        """
        info = self._members[number]
        if info.flag_bits & 1:
            raise UserError("it is encrypted")
        _require_size(info.file_size)
        if self._file is None:
            self._file = zipfile.ZipFile(self._path)
        with self._file.open(info) as member:
            content = member.read(info.file_size)
            # Reading past the end has the checksum compared.
            if member.read(1) or len(content) != info.file_size:
                raise UserError(f"it has not the {info.file_size} bytes that it claims")
        return content

    def identity(self) -> list:
        """Returns the file's name, size and edges."""
        return [edges_of(self._path)]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


class Tar:
    """The members of a tar file, in their order; hidden ones are passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names: list[str] = []
        self.faults: list[tuple[str, str]] = []
        self._places: list[tuple[int, int]] = []
        with reading(path), tarfile.open(path, "r:") as file:
            try:
                while (info := file.next()) is not None:
                    file.members = []  # pyrefly: ignore
                    self._list(info)
                with path.open("rb") as plain:
                    plain.seek(file.offset)
                    if plain.read(tarfile.BLOCKSIZE).strip(b"\0"):
                        raise tarfile.ReadError("a header is damaged")
            except (tarfile.TarError, ValueError) as error:
                reason = f"{path} cannot be read after {len(self.names)} members: {error}"
                self.faults.append(("", reason))

    def read(self, number: int) -> bytes | Path:
        """Returns what a member holds.

        Raises:
            UserError: It is too large, or the file ends before it does.
        """
        start, size = self._places[number]
        _require_size(size)
        if start + size > self._path.stat().st_size:
            raise UserError("it is cut short")
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def identity(self) -> list:
        """Returns the file's name, size and edges."""
        return [edges_of(self._path)]

    def _list(self, info: tarfile.TarInfo) -> None:
        if info.isdir() or not is_seen(info.name):
            return
        if not info.isreg() or info.issparse():
            self.faults.append((info.name, "it is a link or no plain file"))
            return
        self.names.append(info.name)
        self._places.append((info.offset_data, info.size))


def is_archive(path: Path) -> bool:
    """Returns whether a file is a zip or tar file, as its content says."""
    with reading(path), path.open("rb") as file:
        head = file.read(512)
    return head.startswith(_ZIPPED) or head[257:262] == b"ustar" or path.suffix.lower() == ".tar"


def open_archive(path: Path) -> Tree:
    """Opens a zip or tar file.

    Raises:
        UserError: It cannot be read.
    """
    with reading(path), path.open("rb") as file:
        zipped = file.read(4).startswith(_ZIPPED)
    return Zip(path) if zipped else Tar(path)


def is_seen(name: str) -> bool:
    """Returns whether no part of a name is hidden."""
    parts = PurePosixPath(name).parts
    hidden = [part for part in parts if part.startswith(".") and part not in (".", "..")]
    return not hidden and "__MACOSX" not in parts


def _require_size(size: int) -> None:
    if size > MEMBER_BYTES:
        raise UserError(
            f"it has {size} bytes, more than the {MEMBER_BYTES} that are read from an archive; "
            "unpack it"
        )


def _text(name: str) -> str:
    """Returns a name that can be written, whatever bytes it is of."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
