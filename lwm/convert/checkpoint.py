"""Opens the language model in a checkpoint of a training run."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lwm.convert.names import HUGGING_FACE, TensorLayout
from lwm.convert.weights import layer_paths
from lwm.errors import UserError
from lwm.formats.lazy import LazyArrays
from lwm.formats.run_folder import open_checkpoint, read_settings
from lwm.model.config import LlamaConfig

T = TypeVar("T")

_OURS = {path: layout.order.split(" -> ")[1] for path, layout in HUGGING_FACE.items()}
TABLE = {path: TensorLayout(path, f"{letters} -> {letters}") for path, letters in _OURS.items()}
"""Names and layouts of the arrays of `open_language_model`: those of the model itself."""


def open_language_model(place: Path) -> tuple[LlamaConfig, LazyArrays, dict[str, Any]]:
    """Opens a checkpoint: the model's configuration, its arrays by layer, the run's settings.

    Raises:
        UserError: The checkpoint is damaged, or not of a language model.
    """
    settings = read_settings(place)
    try:
        config = from_json(LlamaConfig, settings["model"])
    except (TypeError, ValueError, LookupError, AttributeError):
        raise UserError(f"{place} is no checkpoint of a language model") from None
    arrays = open_checkpoint(place)
    tables = {"embedding": (slice(config.tokens.size),), "head": (..., slice(config.tokens.size))}
    layers = {
        part: (path, tables.get(path, ()) if part == path else number)
        for path in arrays
        for number, part in enumerate(layer_paths(path, config.num_layers))
    }

    def read(name: str) -> np.ndarray:
        path, part = layers[name]
        return arrays[path][part]

    def shape(path: str, part: Any) -> tuple[int, ...]:
        # Of an array without memory: tables are cut to their ids, stacks to a layer.
        return np.broadcast_to(0, arrays.shapes[path])[part].shape

    return config, LazyArrays({name: shape(*each) for name, each in layers.items()}, read), settings


def from_json(cls: type[T], values: Any) -> T:
    """Builds a configuration from the values that `dataclasses.asdict` made of it.

    Raises:
        TypeError, ValueError, LookupError, AttributeError: They are of something else.
    """
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if not (dataclasses.is_dataclass(kind) and isinstance(value, dict)):
            continue
        if {*value} == {field.name for field in dataclasses.fields(kind)}:
            return from_json(typing.cast(type, kind), value)
    return tuple(value) if isinstance(value, list) else value
