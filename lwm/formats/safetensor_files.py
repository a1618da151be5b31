"""Reads the safetensors files of Hugging Face model folders, which transformers would read."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lwm.errors import UserError
from lwm.files import is_data, named_file, parse_json, read_json, reading, reason_of
from lwm.formats.lazy import LazyArrays, require_finite

_MOST_HEADER = 100_000_000
"""Largest header of a safetensors file in bytes, as in the library."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""Files of weights; of several, the first counts, as in transformers."""
_OF_SEVERAL = re.compile(r"-\d{5}-of-\d{5}")
_OF_OTHERS = ("adapter_", "vqgan.safetensors")
"""Starts of names of files in a model's folder that are not of the language model."""


def holds_weights(folder: Path) -> bool:
    """Returns whether a folder holds safetensors of a model, by their names."""
    return any((folder / name).is_file() for name in _WEIGHTS) or bool(_candidates(folder))


def open_safetensors(folder: Path, *, named: Any = None) -> LazyArrays:
    """Opens the safetensors files of a folder, and checks that none is cut short.

    Args:
        folder: The folder.
        named: The file of the weights or of their index, if `config.json` names it.

    Raises:
        UserError: There is no weight file, a shard is missing or a file is damaged.
    """
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    paths, index = _weight_files(folder, named)
    for path in paths:
        for name, shape in _shapes_in(path).items():
            if name in files:
                raise UserError(f"tensor {name} is both in {files[name]} and in {path}; remove one")
            files[name], shapes[name] = path, shape
    for name, file in index.items():
        # Indices list tied heads, too, and RoPE's frequencies, which files need not hold.
        if name not in files and not name.endswith(("lm_head.weight", "rotary_emb.inv_freq")):
            raise UserError(
                f"{folder / file} lacks tensor {name}, which the index says it holds; fetch both "
                "again"
            )

    return LazyArrays(shapes, lambda name: _read(files[name], name))


def open_safetensors_file(path: Path) -> LazyArrays:
    """Opens one safetensors file.

    Raises:
        UserError: It is missing or damaged.
    """
    return LazyArrays(_shapes_in(path), lambda name: _read(path, name))


def metadata_of(path: Path) -> dict[str, str]:
    """Returns the facts in the header of a safetensors file.

    Raises:
        UserError: It is missing or damaged.
    """
    with _opened(path) as file:
        return file.metadata() or {}


def _read(path: Path, name: str) -> np.ndarray:
    with reading(path), safe_open(path, "numpy") as file:
        array = file.get_tensor(name)
    require_finite(array, name, path)
    return array


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in [*file.keys()]}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a file whose header and length are right."""
    with reading(path):
        _require_whole(path)
        try:
            with safe_open(path, "numpy") as file:
                yield file
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({reason_of(error)}); fetch it again") from None


def _weight_files(folder: Path, named: Any) -> tuple[list[Path], dict[str, str]]:
    """Returns the files that transformers would take, and the index of a model in several."""
    for name in _WEIGHTS if named is None else [named]:
        path = named_file(folder, name, "config.json")
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return [path], {}
        index = read_json(path).get("weight_map")
        if not (isinstance(index, dict) and all(isinstance(each, str) for each in index.values())):
            raise UserError(f"{path} does not say which file each tensor is in; fetch it again")
        paths = [named_file(folder, file, path) for file in dict.fromkeys(index.values())]
        if missing := [each.name for each in paths if not os.path.isfile(each)]:
            raise UserError(f"{folder} lacks {', '.join(missing)}, named in {path.name}")
        return sorted(paths), index
    if named is not None:
        raise UserError(f"{folder} lacks {named}, named in config.json")
    found = _candidates(folder)
    if len(found) == 1 and not _OF_SEVERAL.search(found[0].name):
        return found, {}
    raise UserError(f"{folder} {_instead_of_weights(folder, found)}")


def _candidates(folder: Path) -> list[Path]:
    """Returns the safetensors files that may be a model's, by their names."""
    return [
        path
        for path in sorted(folder.glob("*.safetensors"))
        if path.is_file() and is_data(path.name) and not path.name.startswith(_OF_OTHERS)
    ]


def _instead_of_weights(folder: Path, found: list[Path]) -> str:
    """Returns a description of what is there, for a message, and the remedy."""
    if found:
        names = ", ".join(path.name for path in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return (
            f"holds neither {_WEIGHTS[0]} nor {_WEIGHTS[1]}, but {names}{more}; fetch the index of "
            f"a model in several files, or rename its one file to {_WEIGHTS[0]}"
        )
    if adapters := sorted(folder.glob("adapter_*.safetensors")):
        name = adapters[0].name
        return f"holds an adapter alone, {name}; give its model, and the adapter with --lora"
    other = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    hint = f"{other[0]} is a pickle: save the model as safetensors" if other else "fetch it again"
    return f"holds no *.safetensors file; {hint}"


def _require_whole(path: Path) -> None:
    """Refuses a truncated file, and names the first missing tensor, unlike the library."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        try:
            header = parse_json(file.read(header_size if header_size <= _MOST_HEADER else 0))
            header.pop("__metadata__", None)
            ends = {name: each["data_offsets"][1] + 0 for name, each in header.items()}
        except (ValueError, TypeError, LookupError, AttributeError):
            raise UserError(
                f"{path} is damaged: its header cannot be read; fetch it again"
            ) from None
    for name, end in ends.items():
        if 8 + header_size + end > size:
            raise UserError(f"{path} is cut off in tensor {name}; fetch it again")
