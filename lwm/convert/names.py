"""Names and layouts of weights in other formats: tables for both directions.

A layout such as `(NH)D -> DNH` means: the matrix of the other format has N·H rows and D columns,
and the model's array is D × N × H. Letters as in `lwm.model.llama`; `2` is a literal two.
"""

import dataclasses
import re

import numpy as np

from lwm.model.config import LlamaConfig


@dataclasses.dataclass(frozen=True)
class TensorLayout:
    """Name and layout of a weight in another format."""

    name: str
    """A `*` stands for the number of the layer."""
    order: str

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Returns the shape of the tensor in the other format."""
        groups = re.findall(r"\((\w+)\)|(\w)", self.order.split(" -> ")[0])
        return tuple(int(np.prod([sizes[d] for d in many or one])) for many, one in groups)

    def to_ours(self, theirs: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
        """Reorders a tensor of the other format; the result has one dimension per letter."""
        source, target = self._letters()
        split = theirs.reshape([sizes[d] for d in source])
        return split.transpose([source.index(d) for d in target])

    def to_theirs(self, ours: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
        """Inverts `to_ours`."""
        source, target = self._letters()
        split = ours.reshape([sizes[d] for d in target])
        return split.transpose([target.index(d) for d in source]).reshape(self.shape(sizes))

    def _letters(self) -> tuple[str, str]:
        source, target = self.order.split(" -> ")
        return re.sub(r"[()]", "", source), target


def dimensions(config: LlamaConfig) -> dict[str, int]:
    """Returns the size that each letter of a layout stands for."""
    return {
        "V": config.tokens.text,
        "U": config.tokens.vision,
        "D": config.dim,
        "F": config.mlp_dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "R": config.head_dim // 2,
        "2": 2,
    }


HUGGING_FACE = {
    "embedding": TensorLayout("model.embed_tokens.weight", "VD -> VD"),
    "blocks.*.attention_norm.weight": TensorLayout(
        "model.layers.*.input_layernorm.weight", "D -> D"
    ),
    "blocks.*.attention.wq": TensorLayout("model.layers.*.self_attn.q_proj.weight", "(NH)D -> DNH"),
    "blocks.*.attention.wk": TensorLayout("model.layers.*.self_attn.k_proj.weight", "(KH)D -> DKH"),
    "blocks.*.attention.wv": TensorLayout("model.layers.*.self_attn.v_proj.weight", "(KH)D -> DKH"),
    "blocks.*.attention.wo": TensorLayout("model.layers.*.self_attn.o_proj.weight", "D(NH) -> NHD"),
    "blocks.*.attention.bq": TensorLayout("model.layers.*.self_attn.q_proj.bias", "(NH) -> NH"),
    "blocks.*.attention.bk": TensorLayout("model.layers.*.self_attn.k_proj.bias", "(KH) -> KH"),
    "blocks.*.attention.bv": TensorLayout("model.layers.*.self_attn.v_proj.bias", "(KH) -> KH"),
    "blocks.*.attention.q_norm.weight": TensorLayout(
        "model.layers.*.self_attn.q_norm.weight", "H -> H"
    ),
    "blocks.*.attention.k_norm.weight": TensorLayout(
        "model.layers.*.self_attn.k_norm.weight", "H -> H"
    ),
    "blocks.*.mlp_norm.weight": TensorLayout(
        "model.layers.*.post_attention_layernorm.weight", "D -> D"
    ),
    "blocks.*.mlp.w_gate": TensorLayout("model.layers.*.mlp.gate_proj.weight", "FD -> DF"),
    "blocks.*.mlp.w_up": TensorLayout("model.layers.*.mlp.up_proj.weight", "FD -> DF"),
    "blocks.*.mlp.w_down": TensorLayout("model.layers.*.mlp.down_proj.weight", "DF -> FD"),
    "norm.weight": TensorLayout("model.norm.weight", "D -> D"),
    "head": TensorLayout("lm_head.weight", "VD -> DV"),
}

# LWM applies RoPE to neighbouring pairs (2i, 2i + 1); `Llama` to pairs (i, i + H/2).
LWM_NAMES = {
    "embedding": TensorLayout("transformer/wte/embedding", "VD -> VD"),
    "vision_embedding": TensorLayout("transformer/vte/embedding", "UD -> UD"),
    "blocks.*.attention_norm.weight": TensorLayout(
        "transformer/h/*/attention_norm/kernel", "D -> D"
    ),
    "blocks.*.attention.wq": TensorLayout("transformer/h/*/attention/wq/kernel", "D(NR2) -> DN2R"),
    "blocks.*.attention.wk": TensorLayout("transformer/h/*/attention/wk/kernel", "D(KR2) -> DK2R"),
    "blocks.*.attention.wv": TensorLayout("transformer/h/*/attention/wv/kernel", "D(KH) -> DKH"),
    "blocks.*.attention.wo": TensorLayout("transformer/h/*/attention/wo/kernel", "(NH)D -> NHD"),
    "blocks.*.mlp_norm.weight": TensorLayout("transformer/h/*/ffn_norm/kernel", "D -> D"),
    "blocks.*.mlp.w_gate": TensorLayout("transformer/h/*/feed_forward/w1/kernel", "DF -> DF"),
    "blocks.*.mlp.w_up": TensorLayout("transformer/h/*/feed_forward/w3/kernel", "DF -> DF"),
    "blocks.*.mlp.w_down": TensorLayout("transformer/h/*/feed_forward/w2/kernel", "FD -> FD"),
    "norm.weight": TensorLayout("transformer/ln_f/kernel", "D -> D"),
    "head": TensorLayout("lm_head/kernel", "DV -> DV"),
    "vision_head": TensorLayout("vision_head/kernel", "DU -> DU"),
}
