"""Opens images and videos from files, folders, zip and tar files, and lists of paths."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from lwm.data.books import BOOKS
from lwm.data.copies import COPIES
from lwm.data.huggingface import HUB, is_saved
from lwm.data.media.archives import Folder, is_archive, open_archive
from lwm.data.media.folders import DESCRIBING, MediaFiles, is_side, sides_beside
from lwm.data.media.items import Bad, Chain, Items, Listed
from lwm.data.media.lists import LISTS, Csv, is_csv
from lwm.data.media.summary import is_media
from lwm.data.media.world import WorldItems, WorldSet, is_world
from lwm.data.recalls import RECALLS
from lwm.data.sources import open_source
from lwm.errors import UserError, several
from lwm.files import is_packed, matching, reading, require_unpacked
from lwm.vqgan.checkpoint import SHIPPED

_LISTS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrayrecord", ".array_record")
_DESCRIPTIONS = (*LISTS, ".txt", ".tar")


def open_items(inputs: Sequence[str], *, exclude: Path | None = None) -> Items:
    """Opens images and videos as items.

    Each input is a file, a folder, a zip or tar file, a list of paths (CSV, JSON lines, Parquet,
    ArrayRecord, `hf:` and the name of a data set), or a glob pattern. The name of an item is its
    path in the input, after the name of the input if there are several. In a list it is the path
    as given there. The output folder, `exclude`, is skipped inside of an input. `world:train` and
    `world:heldout` are clips of the world; see `WorldSet.parse`.

    Raises:
        UserError: An input does not exist, is of an unknown kind, or is `exclude` itself.
    """
    inputs = several(inputs)
    if not inputs:
        raise UserError("give files, folders, archives or lists of images and videos")
    found = [each for text in inputs for each in _expand(text, exclude)]
    loose = [(Path(path), named) for path, named in found if not _is_collection(path)]
    parts: list[Items] = [_loose(loose)] if loose else []
    for path in _collections(found, loose):
        prefix = f"{os.path.basename(os.path.abspath(path))}/" if len(found) > 1 else ""
        parts += _open(path, prefix, exclude)
    items = Chain(parts)
    if not len(items):
        raise UserError(f"{', '.join(inputs)}: no file, no row of a list")
    return items


def _expand(text: str, exclude: Path | None) -> list[tuple[str, bool]]:
    """Returns the paths of one input, each with whether the user named it literally.

    Raises:
        UserError: No path exists.
    """
    if text.startswith(HUB) or is_world(text) or os.path.exists(text):
        return [(text, True)]
    matched = matching(text)
    if not matched:
        if text.startswith((BOOKS, COPIES, RECALLS)):
            raise UserError(
                f"{text} is text, without images or videos; lwm train takes it as it is"
            )
        raise UserError(f"{text} does not exist, nor does any file match it")
    folders = {str(PurePath(path)) for path in matched if os.path.isdir(path)}
    excluded = {folder for folder in folders if _is_same(folder, exclude)}
    # Files in a folder that matched are read with the folder; they must not be read twice.
    above = folders - excluded
    return [
        (path, False)
        for path, plain in zip(matched, map(PurePath, matched), strict=True)
        if str(plain) not in excluded and above.isdisjoint(map(str, plain.parents))
    ]


def _is_same(path: str, exclude: Path | None) -> bool:
    return exclude is not None and os.path.realpath(path) == os.path.realpath(exclude)


def _collections(found: list[tuple[str, bool]], loose: list[tuple[Path, bool]]) -> Iterator[str]:
    """Yields the paths that hold several items, without those that describe another input.

    Raises:
        UserError: A list describes files that are inputs themselves.
    """
    stems = {str(path.with_suffix("")) for path, _ in loose if not is_side(path.name)}
    folders = {path.parent for path, _ in loose}
    for text, is_literal in found:
        path = Path(text)
        if not _is_collection(text) or (is_side(text) and str(path.with_suffix("")) in stems):
            continue
        describes = path.name in DESCRIBING or (not is_literal and path.suffix.lower() in LISTS)
        if describes and path.parent in folders:
            raise UserError(
                f"{path} describes files beside it, which are given too; give the folder, or the "
                "list alone"
            )
        yield text


def _is_collection(text: str) -> bool:
    """Returns whether a path holds several items, by its content.

    Raises:
        UserError: It cannot be read, or is compressed.
    """
    path = Path(text)
    if text.startswith(HUB) or is_world(text) or path.is_dir():
        return True
    with reading(path):
        if not path.is_file():
            raise UserError(f"{path} is not a file")
        with path.open("rb") as file:
            head = file.read(512)
    if not is_archive(path):
        require_unpacked(path, head)
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
    return MediaFiles(Folder(root, list(paths)), required=any(named for _, named in files))


def _open(text: str, prefix: str, exclude: Path | None) -> list[Items]:
    path = Path(text)
    if is_world(text):
        world = WorldSet.parse(text)
        if world.vqgan != SHIPPED.name:
            raise UserError(f"{text}: here the VQGAN is given apart; leave vqgan out of the name")
        return [WorldItems(world, prefix)]
    if text.startswith(HUB):
        return [Listed(open_source(text), Path())]
    if path.is_dir():
        if _is_same(text, exclude):
            raise UserError(f"{path} is an input; choose another output folder")
        if is_media(path):
            raise UserError(f"{path} holds media shards, whose frames are already encoded")
        if is_saved(path):
            return [Listed(open_source(path), path)]
        return _open_folder(path, prefix, exclude)
    if is_archive(path):
        return [MediaFiles(open_archive(path), prefix=prefix)]
    return [Listed(Csv(path) if is_csv(path) else open_source(path), path.parent)]


def _open_folder(path: Path, prefix: str, exclude: Path | None) -> list[Items]:
    """Opens a folder: its files as one part, then each archive in it as another."""
    tree = Folder(path, exclude=exclude)
    inner: dict[int, Items] = {}
    bad: list[Bad] = []
    for number, name in enumerate(tree.names):
        if is_packed(name, _DESCRIPTIONS):
            require_unpacked(path / name, b"")
        if not name.lower().endswith((".tar", ".zip")):
            continue
        try:
            if is_archive(path / name):
                inner[number] = MediaFiles(open_archive(path / name), prefix=f"{prefix}{name}/")
        except UserError as error:
            inner[number] = Chain([])
            bad.append(Bad(f"{prefix}{name}", str(error)))
    return [MediaFiles(tree, prefix=prefix, exclude=inner, bad=bad), *inner.values()]
