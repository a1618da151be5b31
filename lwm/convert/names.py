"""How other formats name and lay out each weight: tables that can be read in both directions.

A layout such as `(NH)D -> DNH` says that their matrix has N·H rows and D columns, and that ours
is the array D × N × H of the same numbers. Letters as in `lwm.model.llama`; `2` is a literal two.
"""

import dataclasses
import re

import numpy as np

from lwm.model.config import LlamaConfig


@dataclasses.dataclass(frozen=True)
class Layout:
    """One weight of another format: its name there, and how its numbers are ordered."""

    name: str
    """A `*` stands for the number of the layer."""
    order: str

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Returns the shape that the tensor has in the other format."""
        groups = re.findall(r"\((\w+)\)|(\w)", self.order.split(" -> ")[0])
        return tuple(int(np.prod([sizes[d] for d in many or one])) for many, one in groups)

    def to_ours(self, theirs: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
        """Reorders a tensor of theirs; the result has one dimension for each letter of ours."""
        source, target = self._letters()
        split = theirs.reshape([sizes[d] for d in source])
        return split.transpose([source.index(d) for d in target])

    def to_theirs(self, ours: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
        """Undoes `to_ours`."""
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
    "embedding": Layout("model.embed_tokens.weight", "VD -> VD"),
    "blocks.*.attention_norm.weight": Layout("model.layers.*.input_layernorm.weight", "D -> D"),
    "blocks.*.attention.wq": Layout("model.layers.*.self_attn.q_proj.weight", "(NH)D -> DNH"),
    "blocks.*.attention.wk": Layout("model.layers.*.self_attn.k_proj.weight", "(KH)D -> DKH"),
    "blocks.*.attention.wv": Layout("model.layers.*.self_attn.v_proj.weight", "(KH)D -> DKH"),
    "blocks.*.attention.wo": Layout("model.layers.*.self_attn.o_proj.weight", "D(NH) -> NHD"),
    "blocks.*.attention.bq": Layout("model.layers.*.self_attn.q_proj.bias", "(NH) -> NH"),
    "blocks.*.attention.bk": Layout("model.layers.*.self_attn.k_proj.bias", "(KH) -> KH"),
    "blocks.*.attention.bv": Layout("model.layers.*.self_attn.v_proj.bias", "(KH) -> KH"),
    "blocks.*.attention.q_norm.weight": Layout("model.layers.*.self_attn.q_norm.weight", "H -> H"),
    "blocks.*.attention.k_norm.weight": Layout("model.layers.*.self_attn.k_norm.weight", "H -> H"),
    "blocks.*.mlp_norm.weight": Layout("model.layers.*.post_attention_layernorm.weight", "D -> D"),
    "blocks.*.mlp.w_gate": Layout("model.layers.*.mlp.gate_proj.weight", "FD -> DF"),
    "blocks.*.mlp.w_up": Layout("model.layers.*.mlp.up_proj.weight", "FD -> DF"),
    "blocks.*.mlp.w_down": Layout("model.layers.*.mlp.down_proj.weight", "DF -> FD"),
    "norm.weight": Layout("model.norm.weight", "D -> D"),
    "head": Layout("lm_head.weight", "VD -> DV"),
}

# LWM turns neighbouring pairs (2i, 2i + 1) by RoPE; ours are (i, i + H/2).
LWM = {
    "embedding": Layout("transformer/wte/embedding", "VD -> VD"),
    "vision_embedding": Layout("transformer/vte/embedding", "UD -> UD"),
    "blocks.*.attention_norm.weight": Layout("transformer/h/*/attention_norm/kernel", "D -> D"),
    "blocks.*.attention.wq": Layout("transformer/h/*/attention/wq/kernel", "D(NR2) -> DN2R"),
    "blocks.*.attention.wk": Layout("transformer/h/*/attention/wk/kernel", "D(KR2) -> DK2R"),
    "blocks.*.attention.wv": Layout("transformer/h/*/attention/wv/kernel", "D(KH) -> DKH"),
    "blocks.*.attention.wo": Layout("transformer/h/*/attention/wo/kernel", "(NH)D -> NHD"),
    "blocks.*.mlp_norm.weight": Layout("transformer/h/*/ffn_norm/kernel", "D -> D"),
    "blocks.*.mlp.w_gate": Layout("transformer/h/*/feed_forward/w1/kernel", "DF -> DF"),
    "blocks.*.mlp.w_up": Layout("transformer/h/*/feed_forward/w3/kernel", "DF -> DF"),
    "blocks.*.mlp.w_down": Layout("transformer/h/*/feed_forward/w2/kernel", "FD -> FD"),
    "norm.weight": Layout("transformer/ln_f/kernel", "D -> D"),
    "head": Layout("lm_head/kernel", "DV -> DV"),
    "vision_head": Layout("vision_head/kernel", "DU -> DU"),
}
