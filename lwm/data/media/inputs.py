"""What images and videos come in: files, folders, zip and tar files, and lists of paths."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from lwm.data.huggingface import HUB, is_saved
from lwm.data.media.archives import Folder, is_archive, open_archive
from lwm.data.media.folders import DESCRIBING, MediaFiles, is_side, sides_beside
from lwm.data.media.items import Bad, Chain, Items, Listed
from lwm.data.media.lists import Csv, is_csv
from lwm.data.media.summary import is_media
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.files import reading

_LISTS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrayrecord", ".array_record")
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")


def open_items(inputs: Sequence[str], *, leave: Path | None = None) -> Items:
    """Opens what images and videos come in.

    Each input is a file, a folder, a zip or tar file, a list of paths (CSV, JSON lines, Parquet,
    ArrayRecord, `hf:` and a data set's name), or a pattern. The name of an item is its path in its
    input, behind the input's own name where there are several; of a list, the path as it has it.

    Args:
        inputs: Paths and patterns.
        leave: A folder that is passed over where it lies in an input: the one to be written to.

    Raises:
        UserError: Nothing is there, it is nothing of these, or `leave` itself.
    """
    if not inputs:
        raise UserError("give files, folders, archives or lists of images and videos")
    found = [each for text in inputs for each in _expand(text, leave)]
    loose = [(Path(path), named) for path, named in found if not _is_collection(path)]
    parts: list[Items] = [_loose(loose)] if loose else []
    for path in _collections(found, loose):
        prefix = f"{os.path.basename(os.path.abspath(path))}/" if len(found) > 1 else ""
        parts += _open(path, prefix, leave)
    items = Chain(parts)
    if not len(items):
        raise UserError(f"{', '.join(inputs)}: no file, no row of a list")
    return items


def _expand(text: str, leave: Path | None) -> list[tuple[str, bool]]:
    """Returns the paths that one input stands for, each with whether it was named itself.

    Raises:
        UserError: There is none.
    """
    if text.startswith(HUB) or os.path.exists(text):
        return [(text, True)]
    matched = sorted(glob.glob(text, recursive=True))
    if not matched:
        raise UserError(f"{text} does not exist, nor does any file match it")
    folders = {str(PurePath(path)) for path in matched if os.path.isdir(path)}
    left = {folder for folder in folders if _is_same(folder, leave)}
    # What lies in a folder that matched is read with it, and once will do.
    above = folders - left
    return [
        (path, False)
        for path, plain in zip(matched, map(PurePath, matched), strict=True)
        if str(plain) not in left and above.isdisjoint(map(str, plain.parents))
    ]


def _is_same(path: str, leave: Path | None) -> bool:
    return leave is not None and os.path.realpath(path) == os.path.realpath(leave)


def _collections(found: list[tuple[str, bool]], loose: list[tuple[Path, bool]]) -> Iterator[str]:
    """Yields the paths that are more than one file, and describe none that is given too.

    Raises:
        UserError: One describes files that would be read twice, once without what it says.
    """
    stems = {str(path.with_suffix("")) for path, _ in loose if not is_side(path.name)}
    folders = {path.parent for path, _ in loose}
    for text, _ in found:
        path = Path(text)
        if not _is_collection(text) or (is_side(text) and str(path.with_suffix("")) in stems):
            continue
        if path.name in DESCRIBING and path.parent in folders:
            raise UserError(
                f"{path} describes files beside it, which are given too; give the folder, or the "
                "list alone"
            )
        yield text


def _is_collection(text: str) -> bool:
    """Returns whether a path is more than one file, as its content says.

    Raises:
        UserError: It cannot be read, or not as it is.
    """
    path = Path(text)
    if text.startswith(HUB) or path.is_dir():
        return True
    with reading(path):
        if not path.is_file():
            raise UserError(f"{path} is no file")
        with path.open("rb") as file:
            head = file.read(512)
    if head.startswith(_PACKED):
        raise UserError(f"{path} is compressed; unpack it first")
    if is_side(path.name):
        return path.suffix.lower() == ".json"
    text_start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    listed = path.suffix.lower() in _LISTS or text_start == b"{" or is_csv(path)
    return listed or is_archive(path)


def _loose(files: list[tuple[Path, bool]]) -> Items:
    paths = {path.absolute(): None for path, _ in files}
    root = Path(os.path.commonpath([path.parent for path in paths]))
    for path in list(paths):
        paths |= dict.fromkeys(sides_beside(path))
    return MediaFiles(Folder(root, list(paths)), asked=any(named for _, named in files))


def _open(text: str, prefix: str, leave: Path | None) -> list[Items]:
    path = Path(text)
    if text.startswith(HUB):
        return [Listed(open_source(text), Path())]
    if path.is_dir():
        if _is_same(text, leave):
            raise UserError(f"{path} is read; choose another folder to write shards to")
        if is_media(path):
            raise UserError(f"{path} holds media shards, whose frames are codes already")
        if is_saved(path):
            return [Listed(open_source(path), path)]
        return _open_folder(path, prefix, leave)
    if is_archive(path):
        return [MediaFiles(open_archive(path), prefix=prefix)]
    return [Listed(Csv(path) if is_csv(path) else open_source(path), path.parent)]


def _open_folder(path: Path, prefix: str, leave: Path | None) -> list[Items]:
    """Opens what lies in a folder: files first, then the archives, each by itself."""
    tree = Folder(path, leave=leave)
    inner: dict[int, Items] = {}
    bad: list[Bad] = []
    for number, name in enumerate(tree.names):
        if not name.lower().endswith((".tar", ".zip")):
            continue
        try:
            if is_archive(path / name):
                inner[number] = MediaFiles(open_archive(path / name), prefix=f"{prefix}{name}/")
        except UserError as error:
            inner[number] = Chain([])
            bad.append(Bad(f"{prefix}{name}", str(error)))
    return [MediaFiles(tree, prefix=prefix, leave=inner, bad=bad), *inner.values()]
