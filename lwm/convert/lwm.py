"""Weights of the original LWM, from a stream or a train state: one name per layer, one vocabulary.

`lwm.formats.flax_file` reads the files, `lwm.convert.lwm_config` finds the configuration.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lwm.convert.lwm_config import LwmSizes, describe, read_config_of, token_space
from lwm.convert.names import LWM_NAMES, dimensions
from lwm.convert.weights import aligned_empty
from lwm.errors import UserError
from lwm.formats.flax_file import FlaxFile
from lwm.formats.lazy import LazyArrays, require_finite, require_same_tensors
from lwm.hub.catalog import KnownModel
from lwm.model.config import LlamaConfig, ModelOverrides
from lwm.tokens import TokenSpace

PREFIXES = ("params", "trainstate_params", "trainstate", "flax_params")
"""Prefixes of paths on LWM's command line, followed by `::`; the file itself shows its kind."""

TABLE = {path: layout for path, layout in LWM_NAMES.items() if not path.startswith("vision_")}
"""Names and layouts of the tensors, text and vision tables joined."""

_JOINED = {
    LWM_NAMES["embedding"].name: (LWM_NAMES["vision_embedding"].name, 0),
    LWM_NAMES["head"].name: (LWM_NAMES["vision_head"].name, 1),
}
"""Vision tables to append to the text tables, and the axis."""

_MAX_TENSORS = 100_000
"""Far above any model; a stack that declares more layers is damaged, and would fill the memory."""


@dataclass(frozen=True)
class _Place:
    """Place of a tensor in the file: an array, or one layer of it."""

    name: str
    shape: tuple[int, ...]
    axis: int | None = None
    layer: int = 0


class LwmTensors(LazyArrays):
    """The weights of a model by layer; a table holds the text entries, then the vision entries."""

    def __init__(self, path: Path):
        """Reads the headers.

        Raises:
            UserError: The file is missing, damaged, or holds no model.
        """
        self._file = FlaxFile(path)
        found = itertools.islice(_unstacked(_parameters(self._file)), _MAX_TENSORS + 1)
        self._places = dict(found)
        if len(self._places) > _MAX_TENSORS:
            raise UserError(
                f"{path} is damaged: it declares more than {_MAX_TENSORS:,} tensors; fetch it again"
            )
        self.stored = {name: place.shape for name, place in self._places.items()}
        """Shapes of all tensors, text and vision tables separately."""
        shapes = dict(self.stored)
        for name, (other, axis) in _JOINED.items():
            more = shapes.pop(other, None)
            if more is not None and name in shapes:
                shape = shapes[name]
                shapes[name] = (*shape[:axis], shape[axis] + more[axis], *shape[axis + 1 :])
        super().__init__(shapes, self._read_joined)

    def _read_joined(self, name: str) -> np.ndarray:
        dtype = self._file.arrays[self._places[name].name].dtype
        out = aligned_empty(self.shapes[name], dtype)
        other, axis = _JOINED.get(name, ("", 0))
        if other not in self._places:
            self._read_stored(name, out)
            return out
        text = self._places[name].shape[axis]
        for part, target in zip((name, other), np.split(out, [text], axis), strict=True):
            self._read_stored(part, target)
        return out

    def _read_stored(self, name: str, out: np.ndarray) -> None:
        place, path = self._places[name], self._file.path

        def check(part: np.ndarray) -> None:
            require_finite(part, name, path)

        if place.axis is None:
            self._file.read(place.name, out, check)
        else:
            self._file.read_slice(place.name, place.layer, axis=place.axis, out=out, check=check)


def open_lwm(
    path: Path,
    *,
    given: ModelOverrides,
    known: KnownModel | None = None,
) -> tuple[LlamaConfig, LwmTensors]:
    """Opens a file of LWM's parameters, and finds its configuration.

    Args:
        path: The file.
        given: Settings from the user.
        known: The entry of a known model.

    Raises:
        UserError: The file cannot be read, lacks information, or does not fit the model.
    """
    tensors = LwmTensors(path)
    sizes = LwmSizes.read(tensors.stored, path)
    config, found = read_config_of(sizes, path, given, known)
    require_same_tensors(
        tensors.stored,
        _wanted(config),
        problem=f"{path} does not fit {describe(config)}",
        hint=f"; the tensors that it has are of {sizes}",
    )
    if found.theta is None or found.context is None:
        raise UserError(
            f"{path} does not say RoPE's theta and the context; give --theta and --context, here "
            "or to `lwm convert` (LWM's theta: 1e7 for 128K and 256K, 2.5e7 for 512K, 5e7 for 1M "
            "and for vision)"
        )
    config = found.applied(config)
    if given.stretch is not None:
        config = ModelOverrides(context=given.context, stretch=given.stretch).applied(config)
    return config, tensors


def read_token_space(path: Path) -> TokenSpace:
    """Returns the token space of a file of LWM's parameters, which the shapes of its tables show.

    Raises:
        UserError: The file cannot be read, or the entries of its codebook are not known.
    """
    sizes = LwmSizes.read(LwmTensors(path).stored, path)
    return token_space(sizes.text, sizes.vision, path)


def split_prefix(text: str) -> tuple[str, str] | None:
    """Splits LWM's `type::path`; returns None for other texts.

    Raises:
        UserError: The type is unknown.
    """
    kind, colons, path = text.partition("::")
    if not colons:
        return None
    if kind not in PREFIXES:
        raise UserError(f"{kind}:: is no type of file; LWM's are {', '.join(PREFIXES)}")
    return kind, path


def _parameters(file: FlaxFile) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the parameters by full name; a train state holds others, too."""
    shapes = {name: stored.shape for name, stored in file.arrays.items()}
    for prefix in ("params/params/", "params/"):
        inside = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
        if inside:
            return inside
    return shapes


def _unstacked(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, _Place]]:
    """Yields the tensors of unstacked layers, by name."""
    axis = _layer_axis(shapes)
    for full, shape in shapes.items():
        name = re.sub(r"^(params/){0,2}", "", full)
        head, stacked, tail = name.partition("scan_decoder/")
        if not stacked:
            yield name, _Place(full, shape)
        elif len(shape) > axis:
            inner = shape[:axis] + shape[axis + 1 :]
            for layer in range(shape[axis]):
                yield f"{head}{layer}/{tail}", _Place(full, inner, axis, layer)


def _layer_axis(shapes: dict[str, tuple[int, ...]]) -> int:
    """Returns the axis along which layers are stacked (`param_scan_axis`).

    w1 ends in the width of the feed-forward layer; w2 begins with it after the stacked axis.
    """
    parts = {
        name.rpartition("/scan_decoder/feed_forward/")[2]: shape for name, shape in shapes.items()
    }
    width, back = parts.get("w1/kernel", ())[-1:], parts.get("w2/kernel", ())
    return 1 if back[:1] == width and back[1:2] != width else 0


def _wanted(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the tensors of a model."""
    sizes, wanted = dimensions(config), {}
    for path, layout in LWM_NAMES.items():
        if "vision" in path and not config.tokens.vision:
            continue
        if path in ("head", "vision_head") and config.tie_embeddings:
            continue
        layers = range(config.num_layers) if "*" in layout.name else ("",)
        for layer in layers:
            wanted[layout.name.replace("*", str(layer))] = layout.shape(sizes)
    return wanted
