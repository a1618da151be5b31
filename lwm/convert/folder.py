"""Writes model folders: names of files, sharding into files, atomic replacement."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import save_file

from lwm.errors import UserError, is_full_disk
from lwm.files import exclusive, read_json, replacing
from lwm.tokenizer.tokenizer import Tokenizer

WRITER = {"written_by": "lwm"}
"""Marks a `config.json` as ours; transformers would add its own version."""

_FILES = (
    r"(generation_|tokenizer_)?config\.json|tokenizer\.(json|model)|README\.md|"
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|"
    r"vqgan\.(json|safetensors)|(LICENSE|NOTICE|USE_POLICY).*|"
    r"vqvae(/config\.json|/diffusion_pytorch_model\.safetensors)?"
)

_SOURCE = ".source"
"""File in an unfinished folder that identifies its model, dtype and sharding."""


def to_text(values: Mapping[str, Any]) -> str:
    """Formats JSON for the files of a folder."""
    return json.dumps(values, indent=2) + "\n"


def split(sizes: Mapping[str, int], most: int) -> dict[str, list[str]]:
    """Assigns tensors to files, in order, with the names that Hugging Face uses.

    Args:
        sizes: Bytes of each tensor.
        most: Bytes of tensors per file, unless one tensor alone is larger.
    """
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    count = len(groups)
    return {f"model-{i:05}-of-{count:05}.safetensors": each for i, each in enumerate(groups, 1)}


def index_of(shards: Mapping[str, list[str]], num_bytes: int) -> dict[str, str]:
    """Returns the index of tensors to files; empty if there is one file."""
    if len(shards) == 1:
        return {}
    named = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": num_bytes}, "weight_map": named}
    return {"model.safetensors.index.json": to_text(index)}


class FolderWriter:
    """Writes a folder beside its final path, and then moves it there."""

    def __init__(
        self,
        folder: Path,
        num_bytes: int,
        *,
        source: str | None = None,
        require: Callable[[Path], None] | None = None,
    ):
        """Prepares a writer; nothing is written yet.

        Args:
            folder: The final path.
            num_bytes: Size of all weights.
            source: Identifies the contents, so that an interrupted run of the same can be
                resumed; None to start over each time.
            require: Refuses a folder that is not to be replaced; None for `require_ours`.

        Raises:
            UserError: The path is the root of a file system.
        """
        self._folder = Path(folder).expanduser().resolve()
        if not self._folder.name:
            raise UserError(f"{folder} is no place for a model; choose another folder")
        self.beside = self._folder.with_name(f".{self._folder.name}.partial")
        """The unfinished folder."""
        self._num_bytes = num_bytes
        self._source = source
        self._require = require or require_ours
        self._lock = contextlib.ExitStack()
        self._begun = False

    def __enter__(self) -> "FolderWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._begun and self._source is None:
                shutil.rmtree(self.beside, ignore_errors=True)
            if self._begun:
                with contextlib.suppress(OSError):
                    self.beside.rmdir()  # if nothing was written

    def run(self, act: Callable[..., None], *arguments: Any) -> None:
        """Calls `act` with these arguments on the first process; if it fails, every one raises."""
        error = None
        if jax.process_index() == 0:
            try:
                act(*arguments)
            except Exception as caught:
                error = self._explain(caught)
        failed = error is not None
        if jax.process_count() > 1:
            failed = bool(multihost_utils.broadcast_one_to_all(np.int32(failed)))
        if error is not None:
            raise error
        if failed:
            raise UserError(f"{self._folder} is not written; see the error of the first process")

    def begin(self, small: dict[str, str], tokenizer: Tokenizer) -> None:
        """Writes all but the weights, if there is room for these."""
        self._require(self._folder)
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(exclusive(self.beside, shown=self._folder))
        self._begun = True
        self._clear(resumes=self._source is not None and self._left() == self._source)
        there = sum(path.stat().st_size for path in self.beside.glob("*.safetensors"))
        if self._free() + there < self._num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name, text in small.items():
            (self.beside / name).write_bytes(text.encode(errors="replace"))
        tokenizer.save(self.beside)
        if self._source is not None:
            (self.beside / _SOURCE).write_text(self._source, encoding="utf-8")

    def has(self, file: str) -> bool:
        """Returns whether a run that is resumed has written this file of weights."""
        return self._source is not None and (self.beside / file).is_file()

    def add(
        self, file: str, tensors: dict[str, np.ndarray], facts: Mapping[str, str] | None = None
    ) -> None:
        """Writes a file of weights, with facts in its header."""
        with replacing(self.beside / file, durable=True) as partial:
            save_file(tensors, partial, {"format": "pt", **(facts or {})})

    def publish(self) -> None:
        """Moves the folder to its final path, and removes an older one."""
        (self.beside / _SOURCE).unlink(missing_ok=True)
        old = self._folder.with_name(f".{self._folder.name}.old")
        if self._folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            self._folder.rename(old)
        self.beside.rename(self._folder)
        shutil.rmtree(old, ignore_errors=True)
        self._begun = False
        self._lock.close()  # from now on, another process may write there

    def _clear(self, *, resumes: bool) -> None:
        """Removes files of other runs; complete files of weights stay if the run is resumed.

        The folder itself stays, since it is locked.
        """
        for path in self.beside.iterdir():
            if resumes and (path.suffix == ".safetensors" or path.name == _SOURCE):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _explain(self, error: Exception) -> Exception:
        """Turns errors of the disk into one line."""
        if is_full_disk(error):
            return UserError(
                f"no space for the model in {self._folder}: it needs {self._num_bytes / 1e9:.3g} "
                f"GB and {self._free() / 1e9:.3g} GB are free; make room or choose another disk"
            )
        if not isinstance(error, OSError | SafetensorError):
            return error
        return UserError(f"{self._folder} cannot be written ({error}); choose another folder")

    def _left(self) -> str | None:
        """Returns the source of the run that left files here."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self.beside / _SOURCE).read_text(encoding="utf-8")
        return None

    def _free(self) -> int:
        above = next(each for each in self._folder.parents if each.is_dir())
        return shutil.disk_usage(above).free


def require_ours(
    folder: Path,
    *,
    files: str = _FILES,
    is_written: Callable[[Path], bool] = lambda folder: is_config_ours(folder / "config.json"),
) -> None:
    """Refuses a folder that is neither empty nor a model folder written by this package.

    Args:
        folder: The folder, which may not exist.
        files: A pattern of the names of files in such a folder.
        is_written: Returns whether this package wrote the files of a folder.

    Raises:
        UserError: The first foreign file is named.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder for the model")
    inside = [*folder.glob("*"), *folder.glob("vqvae/*")]
    names = [path.relative_to(folder).as_posix() for path in inside]
    foreign = sorted(name for name in names if not re.fullmatch(files, name))
    if names and not is_written(folder):
        foreign = foreign or ["a model"]
    if foreign:
        raise UserError(
            f"{folder} holds {foreign[0]} that was not written here, and would be lost; "
            "choose another folder for the model"
        )


def is_config_ours(config: Path) -> bool:
    """Returns whether this package wrote the file of a model's configuration."""
    with contextlib.suppress(UserError):
        values = read_json(config)
        return WRITER.items() <= values.items() and "transformers_version" not in values
    return False
