"""Small GGUF files, written by the `gguf` package as llama.cpp would."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

LAYERS, HIDDEN, HEADS, KV_HEADS, FFN, VOCAB = 2, 64, 4, 2, 96, 40
HEAD_DIM = HIDDEN // HEADS
LINEAR = {
    "attn_q": ("self_attn.q_proj", (HIDDEN, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, HIDDEN)),
    "ffn_gate": ("mlp.gate_proj", (FFN, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (FFN, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, FFN)),
}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def hugging_face_weights(*, tied: bool = False) -> dict[str, np.ndarray]:
    """Draw a tiny Llama's weights."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    weights = {"model.embed_tokens.weight": draw(VOCAB, HIDDEN), "model.norm.weight": draw(HIDDEN)}
    if not tied:
        weights["lm_head.weight"] = draw(VOCAB, HIDDEN)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        weights |= {f"{layer}.{name}.weight": draw(*shape) for name, shape in LINEAR.values()}
        weights |= {f"{layer}.{name}.weight": draw(HIDDEN) for name in NORMS.values()}
    return weights


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Interleave the halves of each head, as llama.cpp's converter does."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name: str) -> str:
    """Return llama.cpp's name for a weight."""
    tops = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in tops:
        return tops[name]
    roles = {theirs: ours for ours, (theirs, _) in LINEAR.items()}
    roles |= {theirs: ours for ours, theirs in NORMS.items()}
    roles |= {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
    _, _, layer, rest = name.split(".", 3)
    role, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{roles[role]}.{kind}"


def write(
    path: Path,
    weights: dict[str, np.ndarray],
    *,
    arch: str = "llama",
    kind: Kind = Kind.F32,
    extra: dict[str, Any] | None = None,
    factors: np.ndarray | None = None,
) -> Path:
    """Write a GGUF file, matrices in the quantisation asked for."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(50_000_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_DIM)
    for key, value in (extra or {}).items():
        adders: dict[type, Any] = {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        adders[type(value)](key, value)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    for name, weight in weights.items():
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            weight = permute(weight, HEADS if ".q_proj." in name else KV_HEADS)
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name), weight)
        else:
            writer.add_tensor(gguf_name(name), gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


LETTERS: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [chr(ord("A") + number) for number in range(VOCAB)],
}
