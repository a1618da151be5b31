"""Writes a model as a Hugging Face folder, which `lwm.load`, transformers and others open."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from lwm.convert.folder import WRITER, FolderWriter, index_of, split, to_text
from lwm.convert.huggingface import KEYS, OWN
from lwm.convert.names import HUGGING_FACE, TensorLayout
from lwm.convert.weights import layer_paths, layout_of, sizes_in
from lwm.errors import UserError
from lwm.formats.gguf_config import ARCHITECTURES
from lwm.model.config import LlamaConfig
from lwm.model.llama import Llama
from lwm.model.quantize import QuantizedWeight
from lwm.sampling_params import LWM_SAMPLING, VisionSampling
from lwm.sharding import dotted
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.vqgan.checkpoint import save_vqgan
from lwm.vqgan.model import VQGAN


def save_model(
    model: Llama,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    card: str | None = None,
    vqgan: VQGAN | None = None,
    sampling: VisionSampling = LWM_SAMPLING,
) -> None:
    """Writes configuration, safetensors and tokenizer; the folder appears complete or not at all.

    All processes of a run call this, and the first one writes. Each holds the tensors of one file
    in host memory at a time; with several processes, a device also holds one tensor unsharded.

    Args:
        model: Stacked or not, on any mesh. With vision ids it becomes a plain Llama over all ids,
            whose `config.json` has one more key for the token space.
        tokenizer: The model's tokenizer.
        folder: Folder to make; replaces a model that this function wrote there.
        dtype: Type to store; None for the type of the weights.
        max_shard_bytes: Bytes of tensors per file, unless one tensor alone is larger.
        card: The model card, written as README.md.
        vqgan: VQGAN to write beside the model.
        sampling: Default sampling of images and video.

    Raises:
        UserError: The folder holds something else or cannot be written, the disk is full, or the
            model is one that no format of Hugging Face describes.
    """
    leaves = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight))
    if any(isinstance(leaf, QuantizedWeight) for leaf in leaves):
        raise UserError("a model in eight bits cannot be saved; load it in float32 or bfloat16")
    stored = dtype or str(model.embedding.dtype)
    small = {
        "config.json": to_text(hugging_face_config(model.config, tokenizer, stored)),
        "generation_config.json": to_text(generation_config(tokenizer, model.config, sampling)),
    }
    if card is not None:
        small["README.md"] = card
    weights = list(_weights(model))
    sizes = sizes_in(HUGGING_FACE, model.config)
    width = np.dtype(stored).itemsize
    num_bytes = [int(np.prod(each.layout.shape(sizes))) * width for each in weights]
    by_name = {each.layout.name: each for each in weights}
    shards = split(dict(zip(by_name, num_bytes, strict=True)), max_shard_bytes)
    small |= index_of(shards, sum(num_bytes))

    with FolderWriter(folder, sum(num_bytes)) as writer, jax.set_mesh(_mesh(model)):
        writer.run(functools.partial(writer.begin, small, tokenizer))
        if vqgan is not None:
            save = functools.partial(save_vqgan, vqgan, dtype=dtype)
            writer.run(functools.partial(writer.beside, save))
        for file, names in shards.items():
            tensors = {name: by_name[name].read(sizes, stored) for name in names}
            writer.run(functools.partial(writer.add, file, tensors))
        writer.run(writer.publish)


def hugging_face_config(config: LlamaConfig, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """Returns the `config.json` of a model, with the simplest `model_type` for its features.

    Raises:
        UserError: No type has the features, or the tokenizer is of another model.
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
        # Transformers renamed the key; each version reads its own.
        "dtype": dtype,
        "torch_dtype": dtype,
        **WRITER,
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


def generation_config(
    tokenizer: Tokenizer, config: LlamaConfig, sampling: VisionSampling = LWM_SAMPLING
) -> dict[str, Any]:
    """Returns the `generation_config.json` of a model: special ids and default sampling."""
    values = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.eos_ids) or None,
        "pad_token_id": tokenizer.pad_id,
        OWN: dataclasses.asdict(sampling) if config.tokens.vision else None,
    }
    return {key: value for key, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class _Weight:
    layout: TensorLayout
    array: jax.Array
    layer: int | None
    """Index of the layer in a stacked array."""

    def read(self, sizes: dict[str, int], dtype: str) -> np.ndarray:
        """Returns the tensor on the host in Hugging Face's layout, without padding rows."""
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
