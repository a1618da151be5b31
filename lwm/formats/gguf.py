"""Reads GGUF files of Llama-type models as Hugging Face checkpoints: names, layout and config.

`lwm.formats.gguf_file` reads the headers; the package `gguf` decodes quantised blocks.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from lwm.errors import UserError
from lwm.files import reading
from lwm.formats.gguf_blocks import KINDS, Blocks, take_apart
from lwm.formats.gguf_config import config_of, refuse_unsupported
from lwm.formats.gguf_file import TensorEntry, read_contents
from lwm.formats.lazy import LazyArrays, require_finite

GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
"""Names of tensors, and those of Hugging Face."""
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Parts of names of a layer's tensors, likewise."""
_OPTIONAL = {"attn_q_norm", "attn_k_norm"}
_MOST_FACTORS = 1 << 16
_NOT_WEIGHTS = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd(\.weight)?")


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Moves interleaved RoPE pairs of a projection half a head apart."""
    pairs = weight.reshape(num_heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def decode(entry: TensorEntry) -> Float[np.ndarray, "..."]:
    """Decodes one tensor to fp32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(entry.kind)
    # Errors of its shape or scales are reported in one line.
    with reading(entry.path), np.errstate(all="ignore"):
        try:
            weight = dequantize(_raw(entry), kind).reshape(entry.shape)
        except NotImplementedError:
            raise UserError(
                f"{entry.path}: tensor {entry.name!r} is stored as {kind.name}, which cannot be "
                "decoded; use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or a K-quant"
            ) from None
    weight = np.asarray(weight, np.float32)
    require_finite(weight, entry.name, entry.path)
    return weight


def blocks(entry: TensorEntry) -> Blocks | None:
    """Returns a matrix of few bits as it is stored, without decoding it.

    Types whose blocks cannot be taken apart are rounded to those of eight bits; None for types that
    are not quantised.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType(entry.kind)
    if len(entry.shape) != 2 or kind.name in ("F32", "F16", "BF16"):
        return None
    with reading(entry.path), np.errstate(all="ignore"):
        if kind.name in KINDS:
            found = take_apart(_raw(entry), kind.name)
        else:
            eight = GGMLQuantizationType.Q8_0
            found = take_apart(quantize(decode(entry), eight), eight.name)
    for part in (found.scale, found.minimum):
        if part is not None:
            require_finite(part, entry.name, entry.path)
    return found


def _raw(entry: TensorEntry) -> UInt8[np.ndarray, "*rows bytes"]:
    """Maps the bytes of a tensor, row by row."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(entry.kind)]
    raw = np.memmap(entry.path, np.uint8, "r", offset=entry.start, shape=(entry.num_bytes,))
    return np.asarray(raw).reshape(*entry.shape[:-1], entry.shape[-1] // block * size)


def _hugging_face_name(path: Path, name: str) -> str:
    if name in GLOBAL:
        return GLOBAL[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in LAYER:
        raise UserError(f"{path}: tensor {name!r} is not part of a dense Llama-kind model")
    return f"model.layers.{match[1]}.{LAYER[match[2]]}.{match[3]}"


def _refuse_incomplete(path: Path, names: Mapping[str, TensorEntry], num_layers: int) -> None:
    roles = [role for role in LAYER if role not in _OPTIONAL]
    # A generator: the number of layers in a damaged file may be anything.
    wanted = (f"blk.{i}.{role}.weight" for i in range(num_layers) for role in roles)
    for name in itertools.chain(("output_norm.weight",), wanted):
        if name not in names:
            raise UserError(f"{path} is incomplete: it lacks tensor {name!r}")


class PackedArrays(LazyArrays):
    """Tensors of a GGUF file: decoded on access, or as they are stored."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], np.ndarray],
        read_blocks: Callable[[str], Blocks | None],
        kinds: Mapping[str, str],
    ) -> None:
        """Takes both functions, and GGUF's names of the types."""
        super().__init__(shapes, read)
        self.blocks, self.kinds = read_blocks, kinds


def _kind(entry: TensorEntry) -> str:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(entry.kind).name


@dataclass(frozen=True, kw_only=True)
class GGUF:
    """One open file: its metadata, and the model as Hugging Face would have saved it."""

    metadata: dict[str, Any]
    config: dict[str, Any]
    tensors: PackedArrays
    """The weights by Hugging Face name, each decoded to fp32 on access."""


def read_gguf(path: Path) -> GGUF:
    """Opens a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model; no weight is read yet.

    Any part of a model that is split into several files opens all of them.

    Raises:
        UserError: A file is missing or damaged, or the model is not supported.
    """
    metadata, entries = read_contents(path)
    arch = refuse_unsupported(path, metadata)
    rope_factors = None
    if factors := entries.get("rope_freqs.weight"):
        if math.prod(factors.shape) > _MOST_FACTORS:
            raise UserError(
                f"{path} is corrupted: tensor 'rope_freqs.weight' of shape {factors.shape} holds "
                "more factors than a head has; fetch the file again"
            )
        rope_factors = decode(factors)
    shapes = {name: entry.shape for name, entry in entries.items()}
    weights = {name: e for name, e in entries.items() if not _NOT_WEIGHTS.fullmatch(name)}
    if "token_embd.weight" not in weights:
        raise UserError(f"{path} lacks tensor 'token_embd.weight'")
    config = config_of(path, metadata, shapes, rope_factors)
    named = {_hugging_face_name(path, name): entry for name, entry in weights.items()}
    _refuse_incomplete(path, weights, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def read(name: str) -> Float[np.ndarray, "..."]:
        weight, role = decode(named[name]), name.split(".")[-2]
        if arch != "llama" or role not in heads:
            return weight
        with reading(path):
            return _unpermute(weight, heads[role])

    def read_blocks(name: str) -> Blocks | None:
        found, role = blocks(named[name]), name.split(".")[-2]
        if found is None or arch != "llama" or role not in heads:
            return found
        with reading(path):
            return Blocks._make(x if x is None else _unpermute(x, heads[role]) for x in found)

    shapes = {name: entry.shape for name, entry in named.items()}
    kinds = {name: _kind(entry) for name, entry in named.items()}
    tensors = PackedArrays(shapes, read, read_blocks, kinds)
    return GGUF(metadata=metadata, config=config, tensors=tensors)
