"""Low-rank adapters in PEFT's folders: read, merged into the tensors of a model, and written."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from lwm.convert.export import on_host
from lwm.convert.folder import WRITER, FolderWriter, require_ours, to_text
from lwm.convert.names import HUGGING_FACE, TensorLayout
from lwm.convert.weights import layout_of, sizes_in
from lwm.errors import UserError
from lwm.files import read_json
from lwm.formats.lazy import LazyArrays, shapes_of
from lwm.formats.safetensor_files import metadata_of, open_safetensors_file
from lwm.model.config import LORA_TARGETS, LlamaConfig, LoRA
from lwm.model.lora import Adapter, Factors, factor_shapes
from lwm.sharding import without_sp
from lwm.tokenizer.tokenizer import Tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_FILES = (
    r"adapter_config\.json|adapter_model\.safetensors|README\.md|tokenizer(_config)?\.json|"
    r"tokenizer\.model|(LICENSE|NOTICE|USE_POLICY).*"
)
_UNSUPPORTED = ("use_dora", "modules_to_save", "layer_replication", "trainable_token_indices")
"""Settings of PEFT that change a model otherwise than by low-rank factors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """An adapter, read from a folder."""

    folder: Path
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(repr=False)
    """Of each weight, by its name in Hugging Face's files: `in x r` and `r x out`, scaled."""


def is_adapter(path: Path) -> bool:
    """Returns whether a path is a folder with an adapter and without the model."""
    return os.path.isfile(path / CONFIG) and not os.path.isfile(path / "config.json")


def read_adapter(folder: Path) -> AdapterFiles:
    """Reads an adapter as PEFT saves it.

    Raises:
        UserError: The folder holds no adapter, or one that is more than low-rank factors of linear
            layers; the reason is named.
    """
    folder = Path(folder).expanduser()
    if not os.path.isfile(folder / CONFIG):
        raise UserError(f"{folder} holds no adapter: {CONFIG} is not there")
    values = read_json(folder / CONFIG)
    if (kind := values.get("peft_type")) != "LORA":
        raise UserError(f"{folder} holds an adapter of type {kind}; only LORA can be read")
    if used := [name for name in _UNSUPPORTED if values.get(name)]:
        raise UserError(
            f"{folder} has {used[0]}, which is more than low-rank factors; merge it with PEFT, and "
            "give the merged model"
        )
    if not os.path.isfile(folder / WEIGHTS):
        raise UserError(f"{folder} lacks {WEIGHTS}; save the adapter as safetensors")
    arrays = open_safetensors_file(folder / WEIGHTS)
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name in arrays:
        match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
        if match is None or len(arrays.shapes[name]) != 2:
            raise UserError(
                f"{folder} has the tensor {name}, which is no low-rank factor of a linear layer; "
                "merge it with PEFT, and give the merged model"
            )
        halves.setdefault(match[1], {})[match[2]] = arrays[name].astype(np.float32)
    factors = {}
    for module, found in halves.items():
        if len(found) < 2 or len(found["A"]) != found["B"].shape[1]:
            raise UserError(
                f"{folder} is damaged: the factors of {module} do not fit; fetch it again"
            )
        scale = _scale_of(module, len(found["A"]), values, folder)
        factors[f"{module}.weight"] = found["A"].T, scale * found["B"].T
    return AdapterFiles(folder=folder, factors=factors)


def adapter_of(
    arrays: Mapping[str, np.ndarray], lora: Mapping[str, Any], config: LlamaConfig, place: Path
) -> AdapterFiles:
    """Returns the adapter in a checkpoint of a run.

    Args:
        arrays: The arrays of its `lwm.model.lora.Adapter`, by path.
        lora: The settings of the run for adapters.
        config: The model.
        place: The folder of the checkpoint.
    """
    rank, scale, factors = lora["rank"], lora["alpha"] / lora["rank"], {}
    for path in (LORA_TARGETS[target] for target in lora["targets"]):
        a, b = (arrays[f"layers.{path}.{factor}"] for factor in "ab")
        for layer in range(config.num_layers):
            name = layout_of(HUGGING_FACE, f"blocks.{layer}.{path}").name
            factors[name] = a[layer].reshape(-1, rank), scale * b[layer].reshape(rank, -1)
    return AdapterFiles(folder=place, factors=factors)


def base_of(folder: Path) -> str:
    """Returns the model that an adapter was trained on, as its folder names it.

    Raises:
        UserError: It names none, or itself.
    """
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not (isinstance(base, str) and base):
        raise UserError(
            f"{folder} does not name the model of its adapter; give it: MODEL --lora {folder}"
        )
    if Path(base).expanduser().resolve() == folder.resolve():
        raise UserError(f"{folder / CONFIG} names its own folder as the model; correct it")
    return base


def _scale_of(module: str, rank: int, values: Mapping[str, Any], folder: Path) -> float:
    """Returns the scale of a module's adapter, of whose own rank and alpha PEFT has patterns."""
    patterns = values.get("alpha_pattern") or {}
    try:
        own = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
        alpha = float(next(own, values["lora_alpha"]))
    except (LookupError, TypeError, ValueError, AttributeError, re.error):
        raise UserError(
            f"{folder / CONFIG} is damaged: it has no number for lora_alpha of {module}"
        ) from None
    return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)


def merged(
    tensors: Mapping[str, np.ndarray],
    table: dict[str, TensorLayout],
    config: LlamaConfig,
    adapter: AdapterFiles,
) -> "MergedArrays":
    """Returns a model's tensors with an adapter added to them, in float32, as each is read.

    Args:
        tensors: The tensors of the model, in any format.
        table: Names and layouts of these.
        config: The model.
        adapter: The adapter.

    Raises:
        UserError: The adapter is of another model.
    """
    sizes = sizes_in(table, config)
    added = {
        layout_of(table, path).name: (layout_of(table, path), factors)
        for path, factors in _by_path(adapter, config).items()
    }

    def read(name: str) -> np.ndarray:
        if name not in added:
            return tensors[name]
        layout, (a, b) = added[name]
        return tensors[name].astype(np.float32) + layout.to_theirs(a @ b, sizes)

    return MergedArrays(tensors, read)


class MergedArrays(LazyArrays):
    """Tensors of a model with an adapter added to them."""

    def __init__(self, tensors: Mapping[str, np.ndarray], read: Any):
        """Takes the tensors without the adapter, and the function that reads one with it."""
        super().__init__(shapes_of(tensors), read)
        self.without = tensors


def place_adapter(adapter: AdapterFiles, config: LlamaConfig, mesh: Mesh) -> Adapter:
    """Returns the adapter on a mesh, for the layers of a model that generates.

    Layers without an adapter get one of zeros.

    Raises:
        UserError: The adapter is of another model.
    """
    found = _by_path(adapter, config)
    rank = max(a.shape[1] for a, _ in found.values())
    layers = {}
    for path in sorted({path.split(".", 2)[2] for path in found}):
        at = factor_shapes(config, path, rank)
        a = np.zeros((config.num_layers, *at.a), np.float32)
        b = np.zeros((config.num_layers, *at.b), np.float32)
        for layer in range(config.num_layers):
            if (own := found.get(f"blocks.{layer}.{path}")) is not None:
                of_rank = own[0].shape[1]
                a[layer, ..., :of_rank] = own[0].reshape(*at.a[:-1], of_rank)
                b[layer, :of_rank] = own[1].reshape(of_rank, *at.b[1:])
        layers[path] = Factors(_place(a, mesh, at.a_spec), _place(b, mesh, at.b_spec))
    return Adapter(layers, scale=1.0)


def _place(array: np.ndarray, mesh: Mesh, spec: P) -> jax.Array:
    place = NamedSharding(mesh, P(None, *without_sp(spec)))
    return jax.make_array_from_callback(array.shape, place, array.__getitem__)


def _by_path(
    adapter: AdapterFiles, config: LlamaConfig
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the factors by the paths of the unstacked model's weights."""
    known = {
        layout_of(HUGGING_FACE, path).name: path
        for layer in range(config.num_layers)
        for path in (f"blocks.{layer}.{own}" for own in LORA_TARGETS.values())
    }
    found = {}
    for name, (a, b) in adapter.factors.items():
        path = known.get(name)
        if path is None:
            raise UserError(
                f"{adapter.folder} adapts {name.removesuffix('.weight')}, which the model has not; "
                "it is of another model"
            )
        at = factor_shapes(config, path.split(".", 2)[2], a.shape[1])
        if (len(a), b.shape[1]) != (math.prod(at.a[:-1]), math.prod(at.b[1:])):
            raise UserError(
                f"{adapter.folder} adapts {name.removesuffix('.weight')} from {len(a)} to "
                f"{b.shape[1]}, which the model has from {math.prod(at.a[:-1])} to "
                f"{math.prod(at.b[1:])}; it is of another model"
            )
        found[path] = a, b
    if not found:
        raise UserError(f"{adapter.folder} holds no factors; train the adapter again")
    return found


def require_own_adapter(folder: Path) -> None:
    """Refuses a folder that is neither empty nor an adapter written by this package.

    Raises:
        UserError: What is there.
    """
    require_ours(folder, files=_FILES, is_written=_is_own)


def _is_own(folder: Path) -> bool:
    # In the weights, since PEFT warns of settings that it does not know.
    file = folder / WEIGHTS
    return file.is_file() and WRITER.items() <= metadata_of(file).items()


def save_adapter(
    adapter: Adapter,
    lora: LoRA,
    folder: Path,
    *,
    base: str,
    tokenizer: Tokenizer,
    texts: Mapping[str, str],
) -> None:
    """Writes an adapter as PEFT's folder; it appears complete or not at all.

    All processes of a run call this, and the first one writes.

    Args:
        adapter: The factors.
        lora: Rank, alpha and targets.
        folder: Folder to make; replaces an adapter that this function wrote there.
        base: The model that it was trained on: a hub's org/name, a known name, or a path.
        tokenizer: The model's tokenizer.
        texts: Contents of other files by name.

    Raises:
        UserError: The folder holds something else or cannot be written, or the disk is full.
    """
    tensors = {}
    for path, factors in adapter.layers.items():
        a, b = (on_host(each) for each in (factors.a, factors.b))
        for layer in range(len(a)):
            name = layout_of(HUGGING_FACE, f"blocks.{layer}.{path}").name.removesuffix("weight")
            tensors[f"{_PREFIX}{name}lora_A.weight"] = a[layer].reshape(-1, lora.rank).T.copy()
            tensors[f"{_PREFIX}{name}lora_B.weight"] = b[layer].reshape(lora.rank, -1).T.copy()
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    with FolderWriter(folder, size, require=require_own_adapter) as writer:
        writer.run(writer.begin, {CONFIG: to_text(values), **texts}, tokenizer)
        writer.run(writer.add, WEIGHTS, tensors, WRITER)
        writer.run(writer.publish)
