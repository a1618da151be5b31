"""A model written as a Hugging Face folder, which `lwm.load`, transformers and others open."""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError
from safetensors.numpy import save_file

from lwm.convert.gguf_config import ARCHITECTURES
from lwm.convert.huggingface import KEYS, OWN, read_json
from lwm.convert.names import HUGGING_FACE, Layout
from lwm.convert.weights import dotted, layer_paths, layout_of, sizes_in
from lwm.data.tokenizer import Tokenizer
from lwm.errors import UserError, is_full_disk
from lwm.model.config import LlamaConfig
from lwm.model.llama import Llama
from lwm.model.quantize import QuantizedWeight

_WRITER = {"written_by": "lwm"}
"""Stands in `config.json`, beside which transformers would write its own version."""

_FILES = (
    r"(generation_|tokenizer_)?config\.json|tokenizer\.(json|model)|README\.md|"
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)


def save_model(
    model: Llama,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    card: str | None = None,
) -> None:
    """Writes configuration, safetensors and tokenizer; the folder appears whole or not at all.

    All processes of a run call this together, and the first one writes. Each holds the tensors of
    one file in host memory at a time; with several, a device also holds one tensor whole.

    Args:
        model: Stacked or not, on any mesh. With vision ids it becomes a plain Llama over all ids,
            whose `config.json` has one more key that says which they are.
        tokenizer: That of the model.
        folder: Is made; a model that this function wrote there before is replaced.
        dtype: What the weights are stored in; None for what they are in.
        max_shard_bytes: Of tensors in a file, unless one tensor alone has more.
        card: The model card, which becomes README.md.

    Raises:
        UserError: The folder holds something else or cannot be written, the disk is full, or the
            model is one that no format of Hugging Face describes.
    """
    leaves = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight))
    if any(isinstance(leaf, QuantizedWeight) for leaf in leaves):
        raise UserError("a model in eight bits cannot be saved; load it in float32 or bfloat16")
    stored = dtype or str(model.embedding.dtype)
    small = {
        "config.json": _to_text(hugging_face_config(model.config, tokenizer, stored)),
        "generation_config.json": _to_text(_generation_config(tokenizer)),
    }
    if card is not None:
        small["README.md"] = card
    weights = list(_weights(model))
    sizes = sizes_in(HUGGING_FACE, model.config)
    width = np.dtype(stored).itemsize
    num_bytes = [int(np.prod(each.layout.shape(sizes))) * width for each in weights]
    files = _split(weights, num_bytes, max_shard_bytes)
    if len(files) > 1:
        named = {each.layout.name: file for file, held in files.items() for each in held}
        index = {"metadata": {"total_size": sum(num_bytes)}, "weight_map": named}
        small["model.safetensors.index.json"] = _to_text(index)

    with _Writer(folder, sum(num_bytes)) as writer, jax.set_mesh(_mesh(model)):
        writer.run(functools.partial(writer.begin, small, tokenizer))
        for file, held in files.items():
            tensors = {each.layout.name: each.read(sizes, stored) for each in held}
            writer.run(functools.partial(writer.add, file, tensors))
        writer.run(writer.publish)


def hugging_face_config(config: LlamaConfig, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """Returns the `config.json` of a model, of the plainest type that has its features.

    Raises:
        UserError: There is no such type, or the tokenizer is of another model.
    """
    if config.qkv_bias and config.qk_norm:
        raise UserError("no Hugging Face model has both qkv_bias and qk_norm as this one has")
    tokens, scaling = config.tokens, config.rope.scaling
    if tokenizer.vocab_size > tokens.text:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {tokens.text} "
            "text ids; give the model's own tokenizer"
        )
    kind = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    values = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        **{theirs: getattr(config, ours) for ours, theirs in KEYS.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "rope_theta": config.rope.theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "vocab_size": tokens.size,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        # Transformers has renamed it; each version reads its own.
        "dtype": dtype,
        "torch_dtype": dtype,
        **_WRITER,
    }
    if scaling is not None:
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return values | ({OWN: dataclasses.asdict(tokens)} if tokens.vision else {})


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    values = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.eos_ids) or None,
        "pad_token_id": tokenizer.pad_id,
    }
    return {key: value for key, value in values.items() if value is not None}


def _to_text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


@dataclasses.dataclass(frozen=True)
class _Weight:
    layout: Layout
    array: jax.Array
    layer: int | None
    """Which layer of the array it is, if that stacks them."""

    def read(self, sizes: dict[str, int], dtype: str) -> np.ndarray:
        """Brings it to the host, into their order, without the rows that only pad a table."""
        ours = self.array if self.layer is None else _layer(self.array, self.layer)
        letters = self.layout.order.split(" -> ")[1]
        real = tuple(slice(sizes[letter] if letter == "V" else None) for letter in letters)
        array = self.layout.to_theirs(_on_host(ours)[real], sizes)
        return np.ascontiguousarray(array.astype(dtype))


def _mesh(model: Llama) -> Mesh:
    sharding = model.embedding.sharding
    assert isinstance(sharding, NamedSharding)
    assert isinstance(sharding.mesh, Mesh)
    return sharding.mesh


@jax.jit
def _layer(stack: jax.Array, number: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, number, keepdims=False)


def _on_host(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def _weights(model: Llama) -> Iterator[_Weight]:
    for path, leaf in jax.tree.leaves_with_path(model):
        parts = layer_paths(dotted(path), model.config.num_layers)
        for layer, part in enumerate(parts):
            stacked = part != dotted(path)
            yield _Weight(layout_of(HUGGING_FACE, part), leaf, layer if stacked else None)


def _split(weights: list[_Weight], num_bytes: list[int], most: int) -> dict[str, list[_Weight]]:
    """Shares the weights out to files, in their order, and names these as Hugging Face does."""
    groups: list[list[_Weight]] = [[]]
    held = 0
    for weight, size in zip(weights, num_bytes, strict=True):
        if groups[-1] and held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(weight)
        held += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    count = len(groups)
    return {f"model-{i:05}-of-{count:05}.safetensors": each for i, each in enumerate(groups, 1)}


class _Writer:
    """Writes a folder beside its place, and then puts it there."""

    def __init__(self, folder: Path, num_bytes: int):
        self._folder = Path(folder).expanduser().resolve()
        self._beside = self._folder.with_name(f".{self._folder.name}.partial")
        self._num_bytes = num_bytes

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self._beside, ignore_errors=True)

    def run(self, act: Callable[[], None]) -> None:
        """Does it on the first process; where that fails, every process raises."""
        error = None
        if jax.process_index() == 0:
            try:
                act()
            except Exception as caught:
                error = self._explain(caught)
        failed = error is not None
        if jax.process_count() > 1:
            failed = bool(multihost_utils.broadcast_one_to_all(np.int32(failed)))
        if error is not None:
            raise error
        if failed:
            raise UserError(f"{self._folder} is not written; the first process says why")

    def begin(self, small: dict[str, str], tokenizer: Tokenizer) -> None:
        """Writes all but the weights, once it is clear that there is a place for them."""
        require_ours(self._folder)
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._beside, ignore_errors=True)
        if self._free() < self._num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._beside.mkdir()
        tokenizer.save(self._beside)
        for name, text in small.items():
            (self._beside / name).write_text(text, encoding="utf-8")

    def add(self, file: str, tensors: dict[str, np.ndarray]) -> None:
        """Writes some of the weights."""
        save_file(tensors, self._beside / file, {"format": "pt"})
        # The library hides its files from all but their owner.
        shutil.copymode(self._beside / "config.json", self._beside / file)

    def publish(self) -> None:
        """Puts the folder into its place, and takes away what was there."""
        old = self._folder.with_name(f".{self._folder.name}.old")
        if self._folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            self._folder.rename(old)
        self._beside.rename(self._folder)
        shutil.rmtree(old, ignore_errors=True)

    def _explain(self, error: Exception) -> Exception:
        """Tells what the disk says in one line."""
        if not isinstance(error, OSError | SafetensorError):
            return error
        if is_full_disk(error):
            return UserError(
                f"no space for the model in {self._folder}: it needs {self._num_bytes / 1e9:.3g} "
                f"GB and {self._free() / 1e9:.3g} GB are free; make room or choose another disk"
            )
        return UserError(f"{self._folder} cannot be written ({error}); choose another folder")

    def _free(self) -> int:
        above = next(each for each in self._folder.parents if each.is_dir())
        return shutil.disk_usage(above).free


def require_ours(folder: Path) -> None:
    """Refuses a folder that `save_model` would: one neither empty nor wholly our own work.

    Raises:
        UserError: What lies there.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder for the model")
    names = [path.name for path in folder.glob("*")]
    foreign = sorted(name for name in names if not re.fullmatch(_FILES, name))
    if names and not _is_ours(folder):
        foreign = foreign or ["a model"]
    if foreign:
        raise UserError(
            f"{folder} holds {foreign[0]} that was not written here, and would be lost; "
            "choose another folder for the model"
        )


def _is_ours(folder: Path) -> bool:
    with contextlib.suppress(UserError):
        values = read_json(folder / "config.json")
        return _WRITER.items() <= values.items() and "transformers_version" not in values
    return False
