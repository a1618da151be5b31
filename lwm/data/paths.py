"""The files of records that a path, a folder or a pattern stands for; others are named."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lwm.data.huggingface import HUB, is_saved
from lwm.data.media.summary import is_media, media_files
from lwm.data.shards import is_shards
from lwm.errors import UserError
from lwm.files import is_data, is_packed, matching, require_unpacked

JSON = (".jsonl", ".ndjson", ".json")
KNOWN = (*JSON, ".parquet", ".arrayrecord", ".array_record", ".txt")
"""Suffixes of the files of a folder that hold records."""

Warn = Callable[[str], object]
"""Receives warnings of files that are passed over."""

_MOST_NAMED = 5


def expand(path: str | Path, warn: Warn) -> Sequence[Path | str]:
    """Returns the files of a path, a folder or a pattern, sorted by name.

    Names of the hub stay strings; folders saved by the datasets library stay folders.
    """
    if str(path).startswith(HUB):
        return [str(path)]
    plain = Path(path)
    if plain.is_dir():
        if is_shards(plain):
            raise UserError(
                f"{plain} holds tokenized shards, which are examples, not records; train on it as "
                "a data set of its own, or give the files that it was tokenized from"
            )
        if is_saved(plain):
            return [plain]
        if is_media(plain):
            return media_files(plain)
        return _of_folder(plain, warn)
    if plain.exists():
        return [plain]
    found = [file for file in map(Path, matching(str(path))) if file.is_file()]
    if not found:
        raise UserError(f"{plain} does not exist, nor does any file match it")
    return found


def _of_folder(folder: Path, warn: Warn) -> list[Path]:
    """Returns the files of a folder that hold records; names what else there is.

    Raises:
        UserError: There is none, or one is compressed.
    """
    there = sorted(path for path in folder.iterdir() if is_data(path.name))
    for path in there:
        if is_packed(path.name, KNOWN):
            require_unpacked(path, b"")
    found = [path for path in there if path.suffix.lower() in KNOWN and path.is_file()]
    if not found:
        raise UserError(f"folder {folder} holds no {', '.join(KNOWN)} file")
    left = sorted(set(there) - set(found))
    if passed := [f"{path.name}/" if path.is_dir() else path.name for path in left]:
        more = f" and {len(passed) - _MOST_NAMED} more" if len(passed) > _MOST_NAMED else ""
        warn(f"passed over in {folder}: {', '.join(passed[:_MOST_NAMED])}{more}")
    return found
