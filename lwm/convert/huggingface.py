"""Reads Hugging Face model folders: `config.json` and safetensors.

`lwm.convert.export` writes them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lwm.errors import UserError
from lwm.files import read_json
from lwm.formats.lazy import LazyArrays
from lwm.model.config import LinearScaling, LlamaConfig, Rope, RopeScaling
from lwm.tokens import TokenSpace
from lwm.vqgan.config import WEIGHTS

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

_MOST_HEADER = 100_000_000
"""Largest header of a safetensors file in bytes, as in the library."""

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
    _refuse_features(values, source)
    heads = values["num_attention_heads"]
    try:
        return LlamaConfig(
            **{ours: values[theirs] for ours, theirs in KEYS.items()},
            tokens=_tokens(values, source),
            num_kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            rope=_rope(values, source),
            tie_embeddings=values.get("tie_word_embeddings", False),
            qkv_bias=kind == "qwen2" or (kind == "qwen3" and values.get("attention_bias", False)),
            qk_norm=kind == "qwen3",
        )
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def _require_numbers(values: Mapping[str, Any], source: str) -> None:
    """Refuses values that would fail later without the name of the file, or take too long."""
    optional = ("num_key_value_heads", "head_dim", "sliding_window")
    for key in (*KEYS.values(), "vocab_size", *(key for key in optional if values.get(key))):
        value = values[key]
        if key == "rms_norm_eps":
            if not (isinstance(value, int | float) and 0 < value < 1):
                raise UserError(f"{source}: {key} {shown(value)} is no number between 0 and 1")
            continue
        most = _MOST_LAYERS if key == "num_hidden_layers" else 2**48
        if not (isinstance(value, int) and 0 < value <= most):
            raise UserError(f"{source}: {key} {shown(value)} is no whole number from 1 to {most:,}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # a bool is no number, though Python's are ints


def is_theta(value: Any) -> bool:
    """Returns whether a value is valid as RoPE's base."""
    return _is_number(value) and 1 < value < 1e30


def shown(value: Any) -> str:
    """Formats a value of a file for a one-line message."""
    return json.dumps(value, default=str)[:60]


def _tokens(values: Mapping[str, Any], source: str) -> TokenSpace:
    rows, own = values["vocab_size"], values.get(OWN)
    if own is None:
        return TokenSpace(text=rows)
    named = isinstance(own, dict) and {*own} == {"text", "vision", "codes"}
    if not named or not all(isinstance(size, int) and size >= 0 for size in own.values()):
        raise UserError(
            f'{source}: "{OWN}" is {json.dumps(own)}, but it should give text, vision and codes'
        )
    tokens = TokenSpace(**own)
    if tokens.size != rows:
        raise UserError(
            f'{source}: "{OWN}" counts {tokens.text} text and {tokens.vision} vision ids, but '
            f"vocab_size is {rows}; remove the key if the vocabulary has been changed"
        )
    return tokens


def _refuse_features(values: Mapping[str, Any], source: str) -> None:
    window = values.get("sliding_window")
    slides = "sliding_attention" in str(values.get("layer_types"))
    if values["model_type"] == "mistral":
        slides |= window is not None and window < values["max_position_embeddings"]
    unsupported = {
        "sliding-window attention": slides or values.get("use_sliding_window", False),
        "a mixture of experts": any(
            values.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")
        ),
        "a bias in the output projection": values["model_type"] in ("llama", "mistral", "qwen3")
        and values.get("attention_bias", False),
        "a bias in the feed-forward layers": values.get("mlp_bias", False),
        "partial rotary embedding": values.get("partial_rotary_factor", 1.0) != 1.0,
        f"the activation {values.get('hidden_act')!r}": values.get("hidden_act", "silu")
        not in ("silu", "swish"),
        "quantised safetensors": "quantization_config" in values,
    }
    for feature, present in unsupported.items():
        if present:
            raise UserError(f"{source}: {feature} is not supported")


def _rope(values: Mapping[str, Any], source: str) -> Rope:
    # Transformers 5 writes all of RoPE under `rope_parameters`, earlier versions under two keys.
    given = _first(values.get("rope_scaling") or None, values.get("rope_parameters"), {})
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise UserError(f"{source}: RoPE scaling {shown(given)} is no JSON object of numbers")
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
        if not (_is_number(value) and 0 < value < 1e30):
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


def open_safetensors(folder: Path) -> LazyArrays:
    """Opens the safetensors files of a folder, and checks that none is cut short.

    Raises:
        UserError: There is no weight file, a shard is missing or a file is damaged.
    """
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        _require_whole(path)
        try:
            with safe_open(path, "numpy") as file:
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    files[name] = path
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); fetch it again") from None

    def read(name: str) -> np.ndarray:
        with safe_open(files[name], "numpy") as file:
            return file.get_tensor(name)

    return LazyArrays(shapes, read)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map", {})
        if not (isinstance(named, dict) and all(isinstance(name, str) for name in named.values())):
            raise UserError(f"{index} does not say which file each tensor is in; fetch it again")
        paths = [folder / name for name in sorted(set(named.values()))]
    else:
        paths = sorted(set(folder.glob("*.safetensors")) - {folder / WEIGHTS})
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}, named in {index.name}")
    if not paths:
        other = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        hint = f"; {other[0]} is a pickle: save the model as safetensors" if other else ""
        raise UserError(f"{folder} holds no *.safetensors file{hint}")
    return paths


def _require_whole(path: Path) -> None:
    """Refuses a truncated file, and names the first missing tensor, unlike the library."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(header_size if header_size <= _MOST_HEADER else 0))
            header.pop("__metadata__", None)
            ends = {name: each["data_offsets"][1] + 0 for name, each in header.items()}
        except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
            raise UserError(
                f"{path} is damaged: its header cannot be read; fetch it again"
            ) from None
    for name, end in ends.items():
        if 8 + header_size + end > size:
            raise UserError(f"{path} is cut off in tensor {name}; fetch it again")
