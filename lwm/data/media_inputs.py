"""What images and videos come in: files, folders, zip and tar files, and lists of paths."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from lwm.data.files import reading
from lwm.data.huggingface import HUB, is_saved
from lwm.data.media_found import Found, is_side, sides_beside
from lwm.data.media_items import Bad, Chain, Items, Listed
from lwm.data.media_lists import Csv, is_csv
from lwm.data.media_set import is_media
from lwm.data.media_trees import Folder, is_archive, open_archive
from lwm.data.sources import open_source
from lwm.errors import UserError

_LISTS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrayrecord", ".array_record")
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")


def open_items(inputs: Sequence[str]) -> Items:
    """Opens what images and videos come in.

    Each input is a file, a folder, a zip or tar file, a list of paths (CSV, JSON lines, Parquet,
    ArrayRecord, `hf:` and a data set's name), or a pattern. The name of an item is its path in its
    input, behind the input's own name where there are several; of a list, the path as it has it.

    Raises:
        UserError: Nothing is there, or it is nothing of these.
    """
    if not inputs:
        raise UserError("give files, folders, archives or lists of images and videos")
    found = [each for text in inputs for each in _expand(text)]
    loose = [(Path(path), named) for path, named in found if not _is_collection(path)]
    parts: list[Items] = [_loose(loose)] if loose else []
    for path, _ in found:
        if _is_collection(path):
            prefix = f"{os.path.basename(os.path.abspath(path))}/" if len(found) > 1 else ""
            parts += _open(path, prefix)
    items = Chain(parts)
    if not len(items):
        raise UserError(f"{', '.join(inputs)}: no file, no row of a list")
    return items


def _expand(text: str) -> list[tuple[str, bool]]:
    """Returns the paths that one input stands for, each with whether it was named itself."""
    if text.startswith(HUB) or os.path.exists(text):
        return [(text, True)]
    matched = sorted(glob.glob(text, recursive=True))
    if not matched:
        raise UserError(f"{text} does not exist, nor does any file match it")
    # What describes a file is found beside it.
    stems = {os.path.splitext(path)[0] for path in matched if not is_side(path)}
    found = [p for p in matched if not is_side(p) or os.path.splitext(p)[0] not in stems]
    return [(path, False) for path in found]


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
    return Found(Folder(root, list(paths)), asked=any(named for _, named in files))


def _open(text: str, prefix: str) -> list[Items]:
    path = Path(text)
    if text.startswith(HUB):
        return [Listed(open_source(text), Path())]
    if path.is_dir():
        if is_media(path):
            raise UserError(f"{path} holds media shards, whose frames are codes already")
        return [Listed(open_source(path), path)] if is_saved(path) else _open_folder(path, prefix)
    if is_archive(path):
        return [Found(open_archive(path), prefix=prefix)]
    return [Listed(Csv(path) if is_csv(path) else open_source(path), path.parent)]


def _open_folder(path: Path, prefix: str) -> list[Items]:
    """Opens what lies in a folder: files first, then the archives, each by itself."""
    tree = Folder(path)
    inner: dict[int, Items] = {}
    bad: list[Bad] = []
    for number, name in enumerate(tree.names):
        if not name.lower().endswith((".tar", ".zip")):
            continue
        try:
            if is_archive(path / name):
                inner[number] = Found(open_archive(path / name), prefix=f"{prefix}{name}/")
        except UserError as error:
            inner[number] = Chain([])
            bad.append(Bad(f"{prefix}{name}", str(error)))
    return [Found(tree, prefix=prefix, leave=inner, bad=bad), *inner.values()]
