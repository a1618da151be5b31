"""Reads the `config.json` of Hugging Face model folders, which transformers would read.

`lwm.convert.export` writes them.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeGuard

from lwm.errors import UserError
from lwm.model.config import LinearScaling, LlamaConfig, Rope, RopeScaling
from lwm.tokens import TokenSpace

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` for models of the Llama type."""

KEYS = {
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "max_context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}
"""Fields of `LlamaConfig` with other names in `config.json`."""

_MOST_LAYERS = 10_000
"""Far above any model; a file that declares more is damaged, and would take too long to check."""

_MISTRAL_WINDOW = 4096
"""Sliding window of a Mistral whose configuration does not give one, as in transformers."""

OWN = "lwm"
"""The key of `config.json` that holds a token space with vision ids, as `TokenSpace` has it."""


def read_config(values: Mapping[str, Any], *, source: str = "config.json") -> LlamaConfig:
    """Reads the configuration of a model of the Llama type.

    Raises:
        UserError: The architecture or a feature of it is not supported, or a value is missing;
            it is named.
    """
    kind = values.get("model_type")
    if kind not in SUPPORTED:
        raise UserError(
            f"{source}: architecture {kind!r} is not supported; "
            f"supported are dense models of type {', '.join(SUPPORTED)}"
        )
    missing = [key for key in (*KEYS.values(), "vocab_size") if values.get(key) is None]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}; fetch the model's own file again")
    _require_numbers(values, source)
    flags = _flags(values, source)
    _refuse_features(values, flags, source)
    heads = values["num_attention_heads"]
    try:
        return LlamaConfig(
            **{ours: values[theirs] for ours, theirs in KEYS.items()},
            tokens=_tokens(values, source),
            num_kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            rope=_rope(values, source),
            tie_embeddings=flags["tie_word_embeddings"],
            qkv_bias=kind == "qwen2" or (kind == "qwen3" and flags["attention_bias"]),
            qk_norm=kind == "qwen3",
        )
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def _require_numbers(values: Mapping[str, Any], source: str) -> None:
    """Refuses values that would fail later without the name of the file, or take too long."""
    optional = ("num_key_value_heads", "head_dim", "sliding_window")
    there = [key for key in optional if values.get(key) is not None]
    for key in (*KEYS.values(), "vocab_size", *there):
        value = values[key]
        if key == "rms_norm_eps":
            if not (is_number(value) and 0 < value < 1):
                raise UserError(f"{source}: {key} {shown(value)} is no number between 0 and 1")
            continue
        most = _MOST_LAYERS if key == "num_hidden_layers" else 2**48
        if not (type(value) is int and 0 < value <= most):
            raise UserError(f"{source}: {key} {shown(value)} is no whole number from 1 to {most:,}")
    if values.get("head_dim") is None and values["hidden_size"] % values["num_attention_heads"]:
        raise UserError(
            f"{source}: hidden_size {values['hidden_size']} does not divide by "
            f"{values['num_attention_heads']} heads"
        )


def _flags(values: Mapping[str, Any], source: str) -> dict[str, bool]:
    keys = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
    return {key: read_flag(values, key, source) for key in keys}


def read_flag(values: Mapping[str, Any], key: str, source: str) -> bool:
    """Returns true or false; false if the value is missing or null.

    Raises:
        UserError: It is something else, such as the text "false".
    """
    value = _first(values.get(key), False)
    if not isinstance(value, bool):
        raise UserError(f"{source}: {key} {shown(value)} is neither true nor false")
    return value


def is_number(value: Any) -> TypeGuard[int | float]:
    """Returns whether a value of a file is a number; true and false are ints to Python alone."""
    return type(value) in (int, float)


def is_theta(value: Any) -> bool:
    """Returns whether a value is valid as RoPE's base."""
    return is_number(value) and 1 < value < 1e30


def shown(value: Any) -> str:
    """Formats a value of a file for a one-line message."""
    return json.dumps(value, default=str)[:60]


def _tokens(values: Mapping[str, Any], source: str) -> TokenSpace:
    rows, own = values["vocab_size"], values.get(OWN)
    if own is None:
        return TokenSpace(text=rows)
    named = isinstance(own, dict) and {*own} == {"text", "vision", "codes"}
    if not named or not all(type(size) is int and size >= 0 for size in own.values()):
        raise UserError(
            f'{source}: "{OWN}" is {shown(own)}, but it should give text, vision and codes'
        )
    tokens = TokenSpace(**own)
    if tokens.size != rows:
        raise UserError(
            f'{source}: "{OWN}" counts {tokens.text} text and {tokens.vision} vision ids, but '
            f"vocab_size is {rows}; remove the key if the vocabulary has been changed"
        )
    return tokens


def _refuse_features(values: Mapping[str, Any], flags: dict[str, bool], source: str) -> None:
    slides = "sliding_attention" in str(values.get("layer_types"))
    if values["model_type"] == "mistral":
        window = values.get("sliding_window", _MISTRAL_WINDOW)
        slides |= window is not None and window < values["max_position_embeddings"]
    unsupported = {
        "sliding-window attention": slides or flags["use_sliding_window"],
        "a mixture of experts": any(
            values.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")
        ),
        "a bias in the output projection": values["model_type"] in ("llama", "mistral", "qwen3")
        and flags["attention_bias"],
        "a bias in the feed-forward layers": flags["mlp_bias"],
        "partial rotary embedding": _first(values.get("partial_rotary_factor"), 1) != 1,
        f"the activation {values.get('hidden_act')!r}": values.get("hidden_act", "silu")
        not in ("silu", "swish"),
        "quantised safetensors": values.get("quantization_config") is not None,
    }
    for feature, present in unsupported.items():
        if present:
            raise UserError(f"{source}: {feature} is not supported")


def _rope(values: Mapping[str, Any], source: str) -> Rope:
    # Transformers 5 writes all of RoPE under `rope_parameters`, earlier versions under two keys.
    given = _first(values.get("rope_scaling") or None, values.get("rope_parameters"), {})
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise UserError(f"{source}: RoPE scaling {shown(given)} is no JSON object of numbers")
    if _first(given.get("partial_rotary_factor"), 1) != 1:
        raise UserError(f"{source}: partial rotary embedding is not supported")
    theta = _first(given.get("rope_theta"), values.get("rope_theta"), 10_000.0)
    if not is_theta(theta):
        raise UserError(f"{source}: rope_theta {shown(theta)} is no number above 1")
    return Rope(theta=float(theta), scaling=_rope_scaling(given, source))


def _rope_scaling(given: dict[str, Any], source: str) -> RopeScaling | LinearScaling | None:
    kind = _first(given.get("rope_type"), given.get("type"), "default")
    if kind == "default":
        named = given.keys() & {"rope_type", "type"}
        if not named and given.get("factor") not in (None, 1):
            raise UserError(
                f"{source}: RoPE scaling {shown(given)} has a factor but no rope_type; add it"
            )
        return None
    if kind not in ("linear", "llama3"):
        name = {"yarn": "YaRN", "longrope": "LongRoPE"}.get(str(kind), kind)
        raise UserError(
            f"{source}: RoPE scaling {name} is not supported; linear, llama3 and none are"
        )

    def get(key: str) -> float:
        value = given.get(key)
        if not (is_number(value) and 0 < value < 1e30):
            raise UserError(f"{source}: RoPE scaling has {key} {shown(value)}, no number above 0")
        return float(value)

    if kind == "linear":
        return LinearScaling(factor=get("factor"))
    return RopeScaling(
        factor=get("factor"),
        low_freq_factor=get("low_freq_factor"),
        high_freq_factor=get("high_freq_factor"),
        original_context=int(get("original_max_position_embeddings")),
    )


def _first(*values: Any) -> Any:
    """Returns the first value that is there: JSON's null is not, 0 and {} are."""
    return next(value for value in values if value is not None)


def is_not_weight(name: str, config: LlamaConfig) -> bool:
    """Returns whether a tensor of this name may be in checkpoints and is not read."""
    tied_head = config.tie_embeddings and name == "lm_head.weight"
    return tied_head or name.endswith("rotary_emb.inv_freq")
