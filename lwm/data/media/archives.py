"""Folders, zip files and tar files as numbered files; archives are not unpacked.

fsspec has readers of zip and tar files, too. They sort the members and merge those of one name,
take links for files, refuse a tar file that is cut short, and end silently at a damaged header.
Here the order of an archive is kept, and each fault is reported.

Trees can be pickled; open files are opened again after that.
"""

import itertools
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lwm.errors import UserError
from lwm.files import edges_of, is_data, reading, reason_of
from lwm.limits import limit
from lwm.text import well_formed

MEMBER_BYTES = 1 << 30
"""Largest member of an archive, which is read whole; files in folders may be of any size."""

_RATIO = 100
_FREE_BYTES = 1 << 24
_INDEX_BYTES = 1 << 27
_ZIPPED = b"PK\x03\x04", b"PK\x05\x06"


class Tree:
    """Files by number, in a fixed order; by default those of an archive."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names: list[str] = []
        """Paths within the tree."""
        self.faults: list[tuple[str, str]] = []
        """Names that could not be listed, with reasons."""

    def read(self, number: int, *, is_text: bool = False) -> bytes | Path:
        """Returns the content of a file, or its path.

        Args:
            number: Its number.
            is_text: A text or a list, which takes more memory once it is read than its bytes.

        Raises:
            UserError: It is encrypted, damaged, cut short or too large.
        """
        raise NotImplementedError

    def identity(self) -> list:
        """Returns values that differ between trees of different content."""
        return [edges_of(self._path)]

    def files(self) -> dict[str, Path]:
        """Returns the files on disk, by their paths in the tree; an archive itself has none."""
        return {"": self._path}


class Folder(Tree):
    """The files of a folder and its subfolders, sorted by name; see `is_data` for those skipped."""

    def __init__(
        self, root: Path, files: list[Path] | None = None, *, exclude: Path | None = None
    ) -> None:
        """Lists the given files, or all but those in the subfolder `exclude`."""
        super().__init__(root)
        self._sizes: list[int] = []
        if files is None:
            names = self._walk(exclude)
        else:
            names = (os.path.relpath(file, root) for file in files)
        for name in sorted(names):
            try:
                found = os.stat(root / name)
            except OSError as error:
                self.faults.append((readable(name), reason_of(error)))
                continue
            # Reading a pipe would block.
            if stat.S_ISREG(found.st_mode):
                self.names.append(name)
                self._sizes.append(found.st_size)

    def read(self, number: int, *, is_text: bool = False) -> bytes | Path:
        """Returns a file's path."""
        return self._path / self.names[number]

    def identity(self) -> list:
        """Returns the names and sizes of all files."""
        named = zip(map(readable, self.names), self._sizes, strict=True)
        return [*map(list, named), *map(list, self.faults)]

    def files(self) -> dict[str, Path]:
        """Returns all files."""
        return {readable(name): self._path / name for name in self.names}

    def _walk(self, exclude: Path | None) -> Iterator[str]:
        def note(error: OSError) -> None:
            name = os.path.relpath(error.filename, self._path)
            self.faults.append((readable(name), reason_of(error)))

        seen = set() if exclude is None else {os.path.realpath(exclude)}
        for folder, inner, files in os.walk(self._path, onerror=note, followlinks=True):
            # A link may lead back to a folder above.
            if (real := os.path.realpath(folder)) in seen:
                inner.clear()
                continue
            seen.add(real)
            inner[:] = sorted(filter(is_data, inner))
            above = os.path.relpath(folder, self._path)
            for name in files:
                if is_data(name):
                    yield name if above == "." else f"{above}/{name}"


class Zip(Tree):
    """The members of a zip file, in its order; see `is_data` for those skipped."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file: zipfile.ZipFile | None = None
        with reading(path), path.open("rb") as plain:
            _require_few(path, plain)
        with reading(path), zipfile.ZipFile(path) as file:
            infos = file.infolist()
            self._members = [i for i in infos if not i.is_dir() and is_data(i.filename)]
            _require_apart(path, infos)
        self.names = [info.filename for info in self._members]

    def read(self, number: int, *, is_text: bool = False) -> bytes | Path:
        """Returns the content of a member."""
        info = self._members[number]
        if info.flag_bits & 1:
            raise UserError("it is encrypted")
        _require_size(info.file_size)
        ratio = limit("LWM_MAX_RATIO", _RATIO)
        if is_text and info.file_size > max(_FREE_BYTES, ratio * info.compress_size):
            raise UserError(
                f"it unpacks to {info.file_size:,} bytes, more than {ratio} times its size; unpack "
                "it, or raise LWM_MAX_RATIO"
            )
        if self._file is None:
            self._file = zipfile.ZipFile(self._path)
        with self._file.open(info) as member:
            content = member.read(info.file_size)
            # zipfile checks the checksum when it is read past the end.
            if member.read(1) or len(content) != info.file_size:
                raise UserError(f"it does not have the {info.file_size} bytes of its header")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


class Tar(Tree):
    """The members of a tar file, in its order; see `is_data` for those skipped."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
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

    def read(self, number: int, *, is_text: bool = False) -> bytes | Path:
        """Returns the content of a member."""
        start, size = self._places[number]
        _require_size(size)
        if start + size > self._path.stat().st_size:
            raise UserError("it is cut short")
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def _list(self, info: tarfile.TarInfo) -> None:
        if info.isdir() or not is_data(info.name):
            return
        if not info.isreg() or info.issparse():
            self.faults.append((info.name, "it is a link or not a plain file"))
            return
        self.names.append(info.name)
        self._places.append((info.offset_data, info.size))


def is_archive(path: Path) -> bool:
    """Returns whether a file is a zip or tar file, by its content."""
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


def _require_size(size: int) -> None:
    if size > MEMBER_BYTES:
        raise UserError(
            f"it has {size} bytes, more than the {MEMBER_BYTES} that are read from an archive; "
            "unpack it"
        )


def _require_few(path: Path, file: BinaryIO) -> None:
    """Refuses a zip file of very many members before they are listed, by the size of its index."""
    end = zipfile._EndRecData(file)  # pyrefly: ignore
    size = end[zipfile._ECD_SIZE] if end else 0  # pyrefly: ignore
    if size > (most := limit("LWM_MAX_ZIP_INDEX", _INDEX_BYTES)):
        raise UserError(
            f"{path} has an index of {size:,} bytes, more than {most:,}; unpack it, or raise "
            "LWM_MAX_ZIP_INDEX"
        )


def _require_apart(path: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Refuses a zip file that unpacks the same bytes several times."""
    in_order = sorted(infos, key=lambda info: info.header_offset)
    for one, two in itertools.pairwise(in_order):
        if one.header_offset + one.compress_size > two.header_offset:
            raise UserError(f"{path}: {one.filename} and {two.filename} overlap; make it again")


def readable(name: str) -> str:
    """Returns a file name as valid text; bytes that are not UTF-8 are replaced."""
    try:
        return name.encode(errors="surrogateescape").decode(errors="replace")
    except UnicodeEncodeError:  # of a list, whose JSON may hold any half of a surrogate pair
        return well_formed(name)
