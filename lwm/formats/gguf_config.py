"""GGUF metadata as a Hugging Face config."""

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lwm.errors import UserError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
OWN = "lwm"
"""Start of the keys that only this package reads, and the key of the token space in the config."""
# Llama 3 stores its scaling only as the resulting factors; every release used these constants.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192}


def refuse_unsupported(path: Path, metadata: Mapping[str, Any]) -> str:
    """Returns the architecture of a file.

    Raises:
        UserError: It is not supported, or the file holds no model.
    """
    arch = metadata.get("general.architecture")
    if (kind := metadata.get("general.type", "model")) != "model":
        raise UserError(
            f"{path} holds no model but a GGUF file of type {reprlib.repr(kind)}; give the model's"
        )
    if "moe" in str(arch) or metadata.get(f"{arch}.expert_count", 0):
        raise UserError(
            f"{path} holds a mixture of experts ({arch}); only dense models are supported"
        )
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path} has architecture {reprlib.repr(arch)}; supported: {known}")
    return arch


def config_of(
    path: Path,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: Float[np.ndarray, " K"] | None,
) -> dict[str, Any]:
    """Returns the `config.json` that Hugging Face would have written for this model."""
    arch = metadata["general.architecture"]

    def get(key: str, default: int | float | None = None, *, kind: type = int) -> Any:
        """Returns a number, which must be positive."""
        value = metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise UserError(f"{path} is corrupted: it lacks the metadata entry '{arch}.{key}'")
        if type(value) not in (int, kind) or not 0 < value < math.inf:
            whole = "a whole" if kind is int else "a"
            raise UserError(
                f"{path}: metadata entry '{arch}.{key}' is {reprlib.repr(value)}, not {whole} "
                "number > 0"
            )
        return value

    hidden, heads = get("embedding_length"), get("attention.head_count")
    head_dim = get("attention.key_length", hidden // heads)
    attention = metadata.get(f"{arch}.rope.scaling.attn_factor", 1.0)
    if attention != 1:
        raise UserError(
            f"{path} multiplies RoPE by the factor {reprlib.repr(attention)}: not supported"
        )
    if (rotated := get("rope.dimension_count", head_dim)) != head_dim:
        raise UserError(f"{path} rotates only {rotated} of {head_dim} dimensions: not supported")
    theta = _shortest(get("rope.freq_base", 10_000.0, kind=float))
    config = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "hidden_size": int(hidden),
        "num_hidden_layers": int(get("block_count")),
        "num_attention_heads": int(heads),
        "num_key_value_heads": int(get("attention.head_count_kv", heads)),
        "head_dim": int(head_dim),
        "intermediate_size": int(get("feed_forward_length")),
        "hidden_act": "silu",
        "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon", kind=float)),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(path, metadata, theta, head_dim, rope_factors),
        "max_position_embeddings": int(get("context_length")),
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
    }
    if window := metadata.get(f"{arch}.attention.sliding_window"):
        config["sliding_window"] = window
    for name in ("bos", "eos"):
        config[f"{name}_token_id"] = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if own := own_values(metadata, "token_space"):
        config[OWN] = own
    return config


def own_values(metadata: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Returns the values of this package's keys in a group."""
    start = f"{OWN}.{group}."
    return {key.removeprefix(start): metadata[key] for key in metadata if key.startswith(start)}


def _shortest(number: float) -> float:
    """Returns the number that was stored in fp32: without it, 1e-5 is 9.999999747378752e-06."""
    with np.errstate(all="ignore"):
        stored = np.float32(number)
    return float(str(stored)) if stored == number else float(number)


def llama3_factors(
    theta: float,
    head_dim: int,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_context: float | int,
) -> Float[np.ndarray, " K"]:
    """Returns the factors by which Llama 3's scaling stretches each wavelength."""
    low, high = np.float64(low_freq_factor), np.float64(high_freq_factor)
    with np.errstate(all="ignore"):  # damaged numbers are reported by the caller
        turns = original_context / (2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim))
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return 1 / ((1 - smooth) / factor + smooth)


def _rope_scaling(
    path: Path,
    metadata: Mapping[str, Any],
    theta: float,
    head_dim: int,
    rope_factors: Float[np.ndarray, " K"] | None,
) -> dict[str, Any] | None:
    arch = metadata["general.architecture"]
    in_metadata = _scaling_in_metadata(metadata, arch)
    if rope_factors is not None and rope_factors.shape != (head_dim // 2,):
        raise UserError(
            f"{path} is corrupted: 'rope_freqs.weight' has the shape {rope_factors.shape}, not one "
            f"factor for each of {head_dim // 2} pairs"
        )
    if rope_factors is not None and (factor := round(float(rope_factors.max()), 3)) != 1:
        scaling = {"factor": factor, **_LLAMA3} | _own_scaling(path, metadata)
        if not np.allclose(rope_factors, llama3_factors(theta, head_dim, **scaling), rtol=1e-3):
            raise UserError(f"{path}: the RoPE factors in 'rope_freqs.weight' are not Llama 3's")
        if in_metadata is not None:
            raise UserError(
                f"{path}: RoPE scaling {in_metadata['rope_type']} and the factors in "
                "'rope_freqs.weight' together are not supported"
            )
        original = scaling.pop("original_context")
        return {
            "rope_type": "llama3",
            **scaling,
            "original_max_position_embeddings": original,
        }
    return in_metadata


def _own_scaling(path: Path, metadata: Mapping[str, Any]) -> dict[str, float]:
    """Returns Llama 3's scaling as this package writes it beside the factors."""
    found = own_values(metadata, "rope_scaling")
    if not found:
        return {}
    known = ("factor", *_LLAMA3)
    if {*found} != {*known} or not all(type(value) in (int, float) for value in found.values()):
        raise UserError(
            f"{path}: the entries '{OWN}.rope_scaling.*' are {reprlib.repr(found)}, but they should"
            f" be the numbers {', '.join(known)}"
        )
    return {key: _shortest(value) for key, value in found.items()}


def _scaling_in_metadata(metadata: Mapping[str, Any], arch: str) -> dict[str, Any] | None:
    """Returns the scaling as llama.cpp reads it: linear without a type, by either key."""
    kind = metadata.get(f"{arch}.rope.scaling.type", "linear")
    old = metadata.get(f"{arch}.rope.scale_linear", 0.0)
    factor = metadata.get(f"{arch}.rope.scaling.factor", old)
    is_number = type(factor) in (int, float)
    if kind == "none" or (is_number and factor in (0, 1)):
        return None
    scaling = {"rope_type": kind, "factor": _shortest(factor) if is_number else factor}
    if original := metadata.get(f"{arch}.rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = original
    return scaling
