"""Writes a model in the format of the original LWM, which its own code opens.

A folder like those that were published, with the configuration beside: `params` is a stream of
arrays, `vqgan` a pickle of arrays. `lwm.convert.lwm` reads it back.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np

from lwm.convert.card import card
from lwm.convert.card_facts import facts_of
from lwm.convert.convert import legal_texts
from lwm.convert.export import generation_config
from lwm.convert.folder import WRITER, FolderWriter, is_config_ours, require_ours, to_text
from lwm.convert.huggingface import OWN
from lwm.convert.lwm_config import CONFIG
from lwm.convert.names import LWM_NAMES, dimensions
from lwm.convert.open import ModelFiles
from lwm.convert.source import SourceWeights, open_weights, require_other_folder
from lwm.convert.weights import contiguous, in_layout
from lwm.errors import UserError
from lwm.formats.flax_writer import Stack, write_stream
from lwm.formats.pickle_writer import write_pickle
from lwm.model.config import LlamaConfig
from lwm.progress import Progress
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace
from lwm.vqgan.checkpoint import ORIGINAL as VQGAN_FILE, read_vqgan, require_codes, to_flax

PARAMS = "params"
"""The file of the parameters."""
_FILES = (
    r"params|vqgan|llama_config\.json|(generation|tokenizer)_config\.json|"
    r"tokenizer\.(json|model)|README\.md|(LICENSE|NOTICE|USE_POLICY).*"
)
_MOST_RECORD = 2**32 - 2**16
"""Bytes of an array in a stream, whose lengths have 32 bits."""


def write_lwm_original(
    opened: ModelFiles,
    folder: Path,
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    overwrite: bool = False,
    reports: Sequence[Path] = (),
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes parameters, configuration, tokenizer, VQGAN, model card and licence.

    Layers are stacked, as the original has them by default; where a stack is too large for the
    stream's records, layers are apart, and the configuration says so. One layer of a weight is in
    memory at a time.

    Args:
        opened: The model.
        folder: Folder to make.
        dtype: Type to store; None for the type of the weights.
        overwrite: Replaces a model of this format in the folder.
        reports: Reports of `lwm eval` on the model, or their folders, for the model card.
        progress: Called with the number of bytes of weights written and their total.

    Raises:
        UserError: The original has no place for the model or its VQGAN, the folder holds something
            or cannot be written, or the weights cannot be read.
    """
    require_other_folder(opened, folder)
    require_expressible(opened.config)
    weights = open_weights(opened)
    stored = np.dtype(dtype or weights.stored)
    stacked = _is_stacked(opened.config, stored)
    arrays = _arrays(opened.config, weights, stored, stacked=stacked)
    if large := [array.name for array in arrays if array.num_bytes > _MOST_RECORD]:
        raise UserError(
            f"{large[0]} is above 4 GB, the most in LWM's format; give --dtype bfloat16"
        )
    total = sum(array.num_bytes for array in arrays)
    vqgan = None if opened.vqgan is None else _vqgan_arrays(opened.vqgan, opened.config.tokens)
    config = original_config(opened.config, opened.tokenizer, stacked=stacked)
    generation = generation_config(opened.tokenizer, opened.config, opened.sampling)
    legal = legal_texts(opened)
    facts = facts_of(
        opened, str(stored), target="lwm-original", licence_files=[*legal], reports=reports
    )
    small = {
        CONFIG: to_text(config),
        "generation_config.json": to_text(generation),
        "README.md": card(facts),
        **legal,
    }

    def each() -> Iterator[tuple[str, np.ndarray | Stack]]:
        done = 0
        for array in arrays:
            yield array.name, array.open()
            done += array.num_bytes
            progress(done, total)

    require = functools.partial(_require_place, overwrite=overwrite)
    with FolderWriter(folder, total + _num_bytes(vqgan or {}), require=require) as writer:
        writer.run(writer.begin, small, opened.tokenizer)
        if vqgan is not None:
            writer.run(write_pickle, writer.beside / VQGAN_FILE, vqgan)
        writer.run(lambda: write_stream(writer.beside / PARAMS, each()))
        writer.run(writer.publish)


def original_config(
    config: LlamaConfig, tokenizer: Tokenizer, *, stacked: bool = True
) -> dict[str, Any]:
    """Returns the configuration that the original reads with `--load_llama_config=json::FILE`.

    It keeps keys that it does not know, and reads none of them.

    Args:
        config: The model's configuration.
        tokenizer: The model's tokenizer.
        stacked: Whether the layers of a weight are one array.
    """
    tokens = config.tokens
    values: dict[str, Any] = {
        "vocab_size": tokens.text,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_sequence_length": config.max_context,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "tie_word_embeddings": config.tie_embeddings,
        "scan_layers": stacked,
        "param_scan_axis": 0,
        "theta": config.rope.theta,
        **WRITER,
    }
    if tokens.vision:
        values["vision_vocab_size"] = tokens.vision
        values["tie_vision_embeddings"] = config.tie_embeddings
        values[OWN] = dataclasses.asdict(tokens)
    return values


def require_expressible(config: LlamaConfig) -> None:
    """Refuses a model with parts that the original's code does not have.

    Raises:
        UserError: The part.
    """
    parts = {
        "fewer key/value heads than heads": config.num_kv_heads != config.num_heads,
        "heads that are not of width / heads": config.head_dim * config.num_heads != config.dim,
        "biases of queries, keys and values": config.qkv_bias,
        "norms of queries and keys": config.qk_norm,
        "RoPE scaling": config.rope.scaling is not None,
    }
    if found := [part for part, is_there in parts.items() if is_there]:
        raise UserError(
            f"the original LWM has no place for {found[0]}, which this model has; convert with "
            "--to hf or gguf"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stored:
    """An array of the file: its name and size, and a function that opens it."""

    name: str
    num_bytes: int
    open: Callable[[], np.ndarray | Stack]


def _is_stacked(config: LlamaConfig, dtype: np.dtype) -> bool:
    sizes = dimensions(config)
    layers = [layout.shape(sizes) for path, layout in LWM_NAMES.items() if "*" in path]
    most = max(math.prod(shape) for shape in layers)
    return most * dtype.itemsize * config.num_layers <= _MOST_RECORD


def _arrays(
    config: LlamaConfig, weights: SourceWeights, dtype: np.dtype, *, stacked: bool
) -> list[_Stored]:
    """Returns the arrays of the file, sorted by name as JAX sorts dicts."""
    sizes, found = dimensions(config), []
    for path, layout in LWM_NAMES.items():
        ours = path.removeprefix("vision_")
        if ours.replace("*", "0") not in weights.paths or (ours != path and not sizes["U"]):
            continue  # a head that is tied, or a model of text
        layers = range(config.num_layers) if "*" in path else (None,)
        opens = [
            functools.partial(_read, config, weights, path, layer=layer, dtype=dtype)
            for layer in layers
        ]
        shape = layout.shape(sizes)
        size = math.prod(shape) * dtype.itemsize
        if "*" in path and stacked:
            name = layout.name.replace("*", "scan_decoder")
            opened = functools.partial(Stack, opens, shape, dtype)
            found.append(_Stored(name=name, num_bytes=size * len(opens), open=opened))
            continue
        for layer, opened in zip(layers, opens, strict=True):
            name = layout.name.replace("*", str(layer))
            found.append(_Stored(name=name, num_bytes=size, open=opened))
    return sorted(found, key=lambda each: each.name)


def _read(
    config: LlamaConfig,
    weights: SourceWeights,
    path: str,
    *,
    layer: int | None,
    dtype: np.dtype,
) -> np.ndarray:
    """Reads a weight, of a layer if there is one; of joined tables, the part of text or vision."""
    tokens = config.tokens
    whole = weights.read(path.removeprefix("vision_").replace("*", str(layer)))
    if path == "vision_embedding":
        whole = whole[tokens.text : tokens.size]
    elif path == "vision_head":
        whole = whole[:, tokens.text : tokens.size]
    return contiguous(in_layout(whole, LWM_NAMES[path], dimensions(config)), dtype)


def _vqgan_arrays(path: Path, tokens: TokenSpace) -> dict[str, Any]:
    """Reads the VQGAN of a model as the original names its weights.

    Raises:
        UserError: It is of another model, or has parts that the original's does not have.
    """
    model = read_vqgan(path)
    config = model.config
    require_codes(path, config.codes, tokens)
    plain = {"attention": (), "middle_attention": False, "search": "nearest", "unit_codes": False}
    plain["decoder"] = True
    if other := [name for name, value in plain.items() if getattr(config, name) != value]:
        raise UserError(
            f"the original LWM has no place for the vision tokenizer in {path}, whose {other[0]} "
            f"is {getattr(config, other[0])}; convert with --to hf"
        )
    return to_flax(model)


def _num_bytes(tree: dict[str, Any]) -> int:
    return sum(_num_bytes(v) if isinstance(v, dict) else v.nbytes for v in tree.values())


def _require_place(folder: Path, *, overwrite: bool) -> None:
    require_ours(folder, files=_FILES, is_written=lambda folder: is_config_ours(folder / CONFIG))
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UserError(
            f"{folder} holds a model, which would be lost; choose another folder, or give "
            "--overwrite to replace it"
        )
