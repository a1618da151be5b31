"""Opens a model, by name or by path, on the devices at hand."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lwm import catalog
from lwm.convert.gguf import read_gguf
from lwm.convert.huggingface import (
    SafetensorsFolder,
    is_not_weight,
    read_config,
    read_json,
)
from lwm.convert.names import HUGGING_FACE
from lwm.convert.weights import build_llama
from lwm.data.tokenizer import Tokenizer
from lwm.errors import UserError
from lwm.generate.chat import LanguageModel
from lwm.model.config import Dtype
from lwm.sharding import make_mesh


def load(
    name_or_path: str | Path,
    *,
    mesh: str = "1,1,1,1",
    dtype: Dtype | Literal["int8"] = "float32",
    template: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LanguageModel:
    """Opens a model; one that `lwm models` lists or a hub holds is fetched if need be.

    Args:
        name_or_path: A known name, a Hugging Face folder, a GGUF file or a hub's `org/name`.
        mesh: The devices, such as `1,1,4,1` for tensor parallelism over four.
        dtype: What the weights are stored and computed in; `int8` stores the matrices in eight
            bits and computes in float32.
        template: `lwm` or Jinja source in place of the model's own chat template.
        progress: Told how many tensors of how many are loaded.

    Raises:
        UserError: The model cannot be had, read or put on the mesh.
    """
    path = find(name_or_path)
    values, tensors, tokenizer = _open(path)
    is_int8 = dtype == "int8"
    config = read_config(values, source=str(path), dtype="float32" if is_int8 else dtype)
    if tokenizer.vocab_size > config.tokens.text:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens but the model only "
            f"{config.tokens.text}; they are of different models"
        )
    devices = make_mesh(mesh)
    llama = build_llama(
        config,
        tensors,
        HUGGING_FACE,
        mesh=devices,
        int8=is_int8,
        ignore=lambda name: is_not_weight(name, config),
        progress=progress,
    )
    return LanguageModel(
        name=str(name_or_path), llama=llama, tokenizer=tokenizer, mesh=devices, template=template
    )


def find(name_or_path: str | Path) -> Path:
    """Returns a model's file or folder, fetched if need be.

    Raises:
        UserError: It cannot be had, or is in a format that cannot be opened yet: that is said
            before gigabytes are fetched.
    """
    entry = catalog.known(str(name_or_path))
    if entry and "params" in entry.files and not Path(name_or_path).exists():
        found = catalog.locate(entry)
        if found is None or not (found / "config.json").is_file():
            raise UserError(
                f"{entry.name} is published in LWM's own format, which cannot be opened yet; "
                "give a Hugging Face folder of the model instead"
            )
    return catalog.resolve(name_or_path)


def _open(path: Path) -> tuple[dict[str, Any], Mapping[str, np.ndarray], Tokenizer]:
    """Returns configuration, tensors and tokenizer, nothing large of which is read yet."""
    if path.suffix == ".gguf":
        gguf = read_gguf(path)
        return gguf.config, gguf.tensors, Tokenizer.from_gguf(gguf.metadata)
    if path.is_file():
        raise UserError(f"{path} is no model: give a GGUF file or a Hugging Face folder")
    if not (path / "config.json").is_file():
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return _open(ggufs[0])
        if (path / "params").is_file():
            raise UserError(f"{path} is in LWM's own format, which cannot be opened for chat yet")
    values = read_json(path / "config.json")
    return values, SafetensorsFolder(path), Tokenizer.open(path)
