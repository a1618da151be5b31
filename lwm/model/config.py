"""Configuration of a model: its shape, and how it is computed."""

import dataclasses
import math
from typing import Any, Literal, get_args

from lwm.errors import UserError
from lwm.model.stretch import Stretch, stretched_theta
from lwm.renamed import takes_old_settings
from lwm.tokens import TokenSpace

Dtype = Literal["float32", "bfloat16"]

Storage = Literal["float32", "bfloat16", "int8", "int4"]
"""Type of stored weights; with `int8` and `int4`, matrices have so many bits, activations are
float32, and keys and values in the cache bfloat16."""

CacheDtype = Literal["float32", "bfloat16", "int8"]
"""Type of keys and values in a cache; int8 has a scale for each token and head."""

Held = Literal["float32", "bfloat16", "int8", "int4", "q4_1", "q5_0", "q5_1"]
"""`Storage`, and other types of GGUF; `int8` and `int4` are its Q8_0 and Q4_0."""

BITS: dict[str, Literal[4, 8]] = {"int8": 8, "int4": 4}
"""Bits to which matrices are rounded."""

BITS_HELD = {"int8": 8.5, "int4": 4.5, "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0}
"""Bits of a weight of quantised matrices, with its share of scales."""

Remat = Literal["none", "dots", "attention", "offload", "full"]
"""Rematerialisation: activations of a layer that are saved for the backward pass beside its input.
`none` saves all of them; `dots` the results of matrix products and of attention; `attention` those
of attention, so that a ring does not run again; `offload` the same, in host memory, with the
layers' inputs; `full` saves nothing."""


def compute_dtype(held: Held) -> Dtype:
    """Returns the type of activations with weights stored so."""
    return "bfloat16" if held == "bfloat16" else "float32"


def usual_cache(held: Held) -> CacheDtype:
    """Returns the type of keys and values in the cache, with weights stored so."""
    return "float32" if held == "float32" else "bfloat16"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3's scaling of the low RoPE frequencies (Llama 3 report, 2024, section 3.4.2)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int
    """Tokens of context that the model was first trained with."""

    def __post_init__(self):
        """Checks that the scaling divides frequencies, and interpolates between two of them.

        Raises:
            ValueError: Names the values that do not.
        """
        _require_positive(self)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"RoPE scaling has low_freq_factor {self.low_freq_factor:g}, which should be below "
                f"high_freq_factor {self.high_freq_factor:g}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023, arXiv 2306.15595): divides all frequencies."""

    factor: float

    def __post_init__(self):
        """Checks the range.

        Raises:
            ValueError: Names the value.
        """
        _require_positive(self)


def _require_positive(scaling: Any) -> None:
    for name, value in vars(scaling).items():
        if not 0 < value < 1e30:
            raise ValueError(f"RoPE scaling has {name} {value}, no number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding (Su et al. 2021): base and frequency scaling."""

    theta: float = 10_000.0
    scaling: RopeScaling | LinearScaling | None = None


@takes_old_settings("model")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Shape of a dense decoder of the Llama kind."""

    tokens: TokenSpace
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_context: int
    """Tokens of context that the weights were trained for."""
    rope: Rope = Rope()
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    """True if the head is the embedding table."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """True if each head's query and key are RMS-normalised before RoPE, as in Qwen3."""
    init_std: float = 0.02

    def __post_init__(self):
        """Checks that the sizes fit together.

        Raises:
            ValueError: Names the sizes that do not.
        """
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} heads do not divide by {self.num_kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"RoPE rotates pairs, so head_dim {self.head_dim} must be even")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Execution of a model of any shape; answers differ only by rounding."""

    dtype: Dtype = "float32"
    """Type of activations; softmax, norms, RoPE and logits are always float32."""
    remat: Remat = "none"
    """Activations saved for the backward pass, beside each layer's input."""
    mlp_chunk: int | None = None
    """Most tokens of a device of `sp` that go through linear layers at a time; None: all."""
    loss_chunk: int = 1024
    """Tokens of a device of `sp` whose logits exist at a time in training."""

    def __post_init__(self):
        """Checks the ranges.

        Raises:
            UserError: Names the value.
        """
        if min(self.loss_chunk, 1 if self.mlp_chunk is None else self.mlp_chunk) < 1:
            raise UserError(
                f"mlp_chunk {self.mlp_chunk} and loss_chunk {self.loss_chunk} must be at least 1"
            )
        if self.remat not in get_args(Remat):
            raise UserError(f"remat {self.remat!r} is none of {', '.join(get_args(Remat))}")


LORA_TARGETS = {
    "q_proj": "attention.wq",
    "k_proj": "attention.wk",
    "v_proj": "attention.wv",
    "o_proj": "attention.wo",
    "gate_proj": "mlp.w_gate",
    "up_proj": "mlp.w_up",
    "down_proj": "mlp.w_down",
}
"""Weights of a layer that may get an adapter, by the names that PEFT gives them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): small factors are trained in place of
    the weights."""

    rank: int = 0
    """Rank of the adapter of each weight; 0: all weights are trained, and there are no adapters."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = tuple(LORA_TARGETS)
    """Weights with an adapter, by PEFT's names; by default those of all linear layers."""
    frozen_dtype: Storage = "float32"
    """Type in which the other weights are held: bfloat16, int8 and int4 take a half, a quarter and
    a seventh of the memory."""

    def __post_init__(self):
        """Checks ranges and names.

        Raises:
            UserError: Names the value.
        """
        if self.rank < 0 or not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(
                f"lora has rank {self.rank} and alpha {self.alpha:g}: rank is at least 0, and "
                "alpha above 0"
            )
        if not self.targets:
            raise UserError(f"lora needs a target: {', '.join(LORA_TARGETS)}")
        if unknown := [name for name in self.targets if name not in LORA_TARGETS]:
            raise UserError(
                f"lora has no target {unknown[0]!r}; there are {', '.join(LORA_TARGETS)}"
            )
        if twice := [name for name in self.targets if self.targets.count(name) > 1]:
            raise UserError(f"lora names the target {twice[0]} twice; leave one out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOverrides:
    """Facts about a model that its files lack or have wrong, given by the user."""

    config: str | None = None
    """For LWM's own files: a preset such as 7b, or json::FILE or pickle::FILE as LWM wrote it."""
    theta: float | None = None
    """RoPE's base, in place of the one that is known for the model."""
    context: int | None = None
    """Maximum tokens of context, in place of the length that the model was trained for."""
    rope_scaling: str | None = None
    """RoPE scaling in place of the model's: `none`, `linear:FACTOR`, or
    `llama3:FACTOR,LOW,HIGH,CONTEXT` with its factors of low and of high frequencies and the context
    of the first training."""
    codes: int | None = None
    """For LWM's own files: entries of the vision codebook, if neither 8192 nor those of the VQGAN
    beside them."""
    stretch: Stretch | None = None
    """Rule for RoPE's base at the given `context`: `lwm` is LWM's table, from 1e6 at 32K to 5e7 at
    1M; `ntk` raises the model's own base with the ratio of the contexts; `none` keeps it."""

    def __post_init__(self):
        """Checks the ranges.

        Raises:
            UserError: Names the value.
        """
        if self.theta is not None and not (math.isfinite(self.theta) and self.theta > 1):
            raise UserError(f"theta {self.theta} must be above 1; LWM's are 1e7, 2.5e7 and 5e7")
        if self.context is not None and self.context < 1:
            raise UserError(f"context {self.context} leaves no room; give at least 1 token")
        if self.rope_scaling is not None:
            read_scaling(self.rope_scaling)
        if self.codes is not None and self.codes < 1:
            raise UserError(f"codes {self.codes} is no codebook; give at least 1")
        computed = self.stretch not in (None, "none")
        if computed and (self.context is None or self.theta is not None):
            raise UserError(
                "stretch computes theta from context; give context, and leave out theta, or say "
                "stretch none"
            )

    def applied(self, config: LlamaConfig) -> LlamaConfig:
        """Returns the configuration with these values in place of its own."""
        rope = config.rope
        if self.theta is not None:
            rope = dataclasses.replace(rope, theta=self.theta)
        if self.rope_scaling is not None:
            rope = dataclasses.replace(rope, scaling=read_scaling(self.rope_scaling))
        context = config.max_context if self.context is None else self.context
        if self.stretch is not None:
            theta = stretched_theta(
                self.stretch,
                context,
                theta=rope.theta,
                trained=config.max_context,
                head_dim=config.head_dim,
            )
            rope = dataclasses.replace(rope, theta=theta)
        return dataclasses.replace(config, rope=rope, max_context=context)


NO_OVERRIDES = ModelOverrides()


def read_scaling(text: str) -> RopeScaling | LinearScaling | None:
    """Reads RoPE scaling as `ModelOverrides` takes it.

    Raises:
        UserError: It is of another form, or a value is out of range.
    """
    kind, _, numbers = text.partition(":")
    try:
        match kind, [float(number) for number in numbers.split(",") if numbers]:
            case "none", []:
                return None
            case "linear", [factor]:
                return LinearScaling(factor=factor)
            case "llama3", [factor, low, high, context]:
                return RopeScaling(
                    factor=factor,
                    low_freq_factor=low,
                    high_freq_factor=high,
                    original_context=round(context),
                )
            case _:
                raise ValueError("it has another form")
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"rope_scaling {text!r} cannot be read ({error}); give none, linear:FACTOR or "
            "llama3:FACTOR,LOW,HIGH,CONTEXT, such as llama3:8,1,4,8192"
        ) from None


# name: dim, mlp_dim, layers, heads, context, norm_eps; the presets of LWM's code.
_PRESETS = {
    "debug": (256, 256, 2, 2, 2048, 1e-6),
    "200m": (1024, 2048, 14, 8, 2048, 1e-6),
    "1b": (2048, 5504, 22, 16, 2048, 1e-6),
    "3b": (3200, 8640, 26, 32, 2048, 1e-6),
    "7b": (4096, 11008, 32, 32, 4096, 1e-6),
    "13b": (5120, 13824, 40, 40, 2048, 1e-6),
    "30b": (6656, 17920, 60, 52, 2048, 1e-6),
    "65b": (8192, 22016, 80, 64, 2048, 1e-5),
}
PRESETS = tuple(_PRESETS)


def preset(name: str, **changes: Any) -> LlamaConfig:
    """Returns one of LWM's named sizes (`PRESETS`), with some fields changed.

    Raises:
        UserError: No preset has this name.
    """
    if name not in _PRESETS:
        raise UserError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    dim, mlp_dim, layers, heads, context, eps = _PRESETS[name]
    config = LlamaConfig(
        tokens=TokenSpace(text=32_000),
        dim=dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=mlp_dim,
        max_context=context,
        norm_eps=eps,
    )
    return dataclasses.replace(config, **changes)
