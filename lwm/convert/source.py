"""Models that are converted: their weights, and the places where these are."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lwm.convert.huggingface import is_not_weight
from lwm.convert.lora import MergedArrays
from lwm.convert.open import ModelFiles
from lwm.convert.weights import Weights, layout_of, weight_paths
from lwm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceWeights:
    """The weights of a model, each read on its own."""

    paths: list[str]
    """Paths of the unstacked model."""
    read: Callable[[str], np.ndarray]
    """Returns the weight of a path, with a dimension for each letter of its layout."""
    stored: str
    """The type of the matrices; norms may be of a wider one."""


def open_weights(opened: ModelFiles) -> SourceWeights:
    """Checks that the tensors of a model fit it.

    Raises:
        UserError: They do not.
    """
    config, paths, tensors = opened.config, weight_paths(opened.config), opened.tensors
    weights = Weights(
        config, tensors, opened.table, paths, lambda name: is_not_weight(name, config)
    )
    own = tensors.without if isinstance(tensors, MergedArrays) else tensors
    stored = str(own[layout_of(opened.table, "blocks.0.mlp.w_gate").name].dtype)
    return SourceWeights(paths=paths, read=weights.unpadded, stored=stored)


def require_other_folder(opened: ModelFiles, folder: Path) -> None:
    """Refuses to write a model into its own folder.

    Raises:
        UserError: It is the model's.
    """
    source = opened.place
    inside = source if source.is_dir() else source.parent
    if folder.expanduser().resolve() == inside.resolve():
        raise UserError(f"{folder} holds the model itself; choose another folder")


def require_other_files(opened: ModelFiles, file: Path) -> None:
    """Refuses to write a model over one of its own files.

    Raises:
        UserError: It is the model's.
    """
    if file.resolve() in {path.resolve() for path in opened.files}:
        raise UserError(f"{file} is the model itself; choose another name")
