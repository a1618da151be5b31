"""Writes a model as a Hugging Face folder, which `lwm.load`, transformers and others open."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from lwm.convert.folder import WRITER, FolderWriter, index_of, split, to_text
from lwm.convert.huggingface import KEYS, OWN
from lwm.convert.names import HUGGING_FACE
from lwm.convert.weights import contiguous, in_layout, layer_paths, layout_of, sizes_in
from lwm.errors import UserError
from lwm.formats.gguf_config import ARCHITECTURES
from lwm.model.config import LinearScaling, LlamaConfig
from lwm.model.llama import Llama
from lwm.model.quantize import QuantizedWeight
from lwm.progress import Progress
from lwm.sampling_params import LWM_SAMPLING, VisionSampling
from lwm.sharding import dotted
from lwm.tokenizer.tokenizer import Tokenizer, with_format
from lwm.vqgan.checkpoint import save_vqgan
from lwm.vqgan.model import VQGAN
from lwm.vqgan.vqmodel import FOLDER as VQMODEL, is_vqmodel, save_vqmodel

ORIGIN = "converted_from"
"""Key of `config.json` that identifies the model that a folder was converted from."""


def save_model(
    model: Llama,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    card: str | None = None,
    licences: Mapping[str, str] | None = None,
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
        licences: Texts of licences and notices, by names of files.
        vqgan: VQGAN to write beside the model.
        sampling: Default sampling of images and video.

    Raises:
        UserError: The folder holds something else or cannot be written, the disk is full, or the
            model is one that no format of Hugging Face describes.
    """
    weights = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight))
    if any(isinstance(leaf, QuantizedWeight) for leaf in weights):
        raise UserError(
            "weights of few bits cannot be saved; load the model in float32 or bfloat16"
        )
    leaves = {
        part: (leaf, None if part == dotted(path) else layer)
        for path, leaf in jax.tree.leaves_with_path(model)
        for layer, part in enumerate(layer_paths(dotted(path), model.config.num_layers))
    }

    def read(path: str) -> np.ndarray:
        array, layer = leaves[path]
        return on_host(array if layer is None else _layer(array, layer))

    with jax.set_mesh(_mesh(model)):
        write_model(
            folder,
            model.config,
            with_format(tokenizer, chats=model.config.tokens.vision > 0),
            read,
            paths=leaves,
            dtype=dtype or str(model.embedding.dtype),
            max_shard_bytes=max_shard_bytes,
            sampling=sampling,
            texts={**(licences or {}), **({} if card is None else {"README.md": card})},
            save_vqgan=None
            if vqgan is None
            else functools.partial(write_vqgan, vqgan, dtype=dtype),
        )


def write_vqgan(
    model: VQGAN, folder: Path, *, dtype: Literal["float32", "bfloat16"] | None = None
) -> None:
    """Writes a VQGAN into a model's folder: for diffusers, or what that cannot express as ours.

    Raises:
        UserError: The folder cannot be written.
    """
    if is_vqmodel(model.config):
        save_vqmodel(model, folder / VQMODEL, dtype=dtype)
    else:
        save_vqgan(model, folder, dtype=dtype)


def write_model(
    folder: Path,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    read: Callable[[str], np.ndarray],
    *,
    paths: Iterable[str],
    dtype: str,
    max_shard_bytes: int,
    sampling: VisionSampling,
    texts: Mapping[str, str],
    save_vqgan: Callable[[Path], None] | None,
    vqgan_bytes: int = 0,
    source: str | None = None,
    origin: str | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes a model from weights that are read one file at a time.

    Args:
        folder: Folder to make.
        config: The model's configuration.
        tokenizer: The model's tokenizer.
        read: Returns the weight of a path, with a dimension for each letter of its layout.
        paths: Paths of the weights of the unstacked model, in the order of the files.
        dtype: Type to store.
        max_shard_bytes: Bytes of weights per file, unless one tensor alone is larger.
        sampling: Default sampling of images and video.
        texts: Contents of other files by name.
        save_vqgan: Writes a VQGAN into a folder; None for none.
        vqgan_bytes: Size of the VQGAN.
        source: Identifies the contents, to resume an interrupted run; see `FolderWriter`.
        origin: Identifies the model that is converted, for `config.json`.
        progress: Called with the number of bytes of weights written and their total.

    Raises:
        UserError: See `save_model`.
    """
    sizes, width = sizes_in(HUGGING_FACE, config), np.dtype(dtype).itemsize
    layouts = {path: layout_of(HUGGING_FACE, path) for path in paths}
    num_bytes = {
        path: int(np.prod(layout.shape(sizes))) * width for path, layout in layouts.items()
    }
    total = sum(num_bytes.values())
    shards = split(num_bytes, max_shard_bytes)
    names = {file: [layouts[path].name for path in held] for file, held in shards.items()}
    values = hugging_face_config(config, tokenizer, dtype)
    small = {
        "config.json": to_text(values | ({ORIGIN: origin} if origin else {})),
        "generation_config.json": to_text(generation_config(tokenizer, config, sampling)),
        **texts,
        **index_of(names, total),
    }

    def tensor(path: str) -> np.ndarray:
        return contiguous(in_layout(read(path), layouts[path], sizes), dtype)

    with FolderWriter(folder, total + vqgan_bytes, source=source) as writer:
        writer.run(writer.begin, small, tokenizer)
        if save_vqgan is not None:  # first, so that a damaged one fails at once
            writer.run(save_vqgan, writer.beside)
        done = 0
        for file, held in shards.items():
            if not writer.has(file):
                writer.run(writer.add, file, {layouts[path].name: tensor(path) for path in held})
            done += sum(num_bytes[path] for path in held)
            progress(done, total)
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
    if isinstance(scaling, LinearScaling):
        values["rope_scaling"] = {"rope_type": "linear", "factor": scaling.factor}
    elif scaling is not None:
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return values | ({OWN: dataclasses.asdict(tokens)} if tokens.vision else {})


def generation_config(
    tokenizer: Tokenizer, config: LlamaConfig, sampling: VisionSampling
) -> dict[str, Any]:
    """Returns the `generation_config.json` of a model: special ids and default sampling.

    Other programs generate text with it, in which `suppress_tokens` leaves out the vision ids.
    """
    tokens = config.tokens
    values = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.eos_ids) or None,
        "pad_token_id": tokenizer.pad_id,
        "suppress_tokens": list(range(tokens.text, tokens.size)) or None,
        OWN: dataclasses.asdict(sampling) if tokens.vision else None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _mesh(model: Llama) -> Mesh:
    sharding = model.embedding.sharding
    assert isinstance(sharding, NamedSharding)
    assert isinstance(sharding.mesh, Mesh)
    return sharding.mesh


@jax.jit
def _layer(stack: jax.Array, number: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, number, keepdims=False)


def on_host(array: jax.Array) -> np.ndarray:
    """Returns a whole array on the host, on every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
