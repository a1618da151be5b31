"""Configurations in the metadata of GGUF files: sizes, RoPE and its scaling, ids."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwm.convert.huggingface import read_config
from lwm.errors import UserError
from lwm.formats.gguf import read_gguf
from lwm.model.config import LinearScaling
from lwm.tokenizer.tokenizer import Tokenizer

from .gguf_files import (
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    LETTERS,
    VOCAB,
    hugging_face_weights,
    write,
)


def test_config(tmp_path: Path):
    opened = read_gguf(write(tmp_path / "m.gguf", hugging_face_weights()))
    assert opened.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": FFN,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 50_000_000.0,
        "rope_scaling": None,
        "max_position_embeddings": 128,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def llama3_factors(theta: float, factor: float) -> np.ndarray:
    """Return Llama 3's factors, written out as in its reference code."""
    factors = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * np.pi * theta ** (i / HEAD_DIM)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_llama3_scaling_is_recognised(tmp_path: Path):
    factors = llama3_factors(50_000_000.0, 32.0)
    assert np.unique(factors).size > 1
    opened = read_gguf(write(tmp_path / "m.gguf", hugging_face_weights(), factors=factors))
    assert opened.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert not any("rope" in name for name in opened.tensors)


def test_other_rope_factors_are_refused(tmp_path: Path):
    factors = np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32)
    path = write(tmp_path / "m.gguf", hugging_face_weights(), factors=factors)
    with pytest.raises(UserError, match=r"m\.gguf.*rope_freqs\.weight.*not Llama 3's"):
        read_gguf(path)
    write(path, hugging_face_weights(), factors=np.ones(1 << 17, np.float32))
    with pytest.raises(UserError, match=r"rope_freqs\.weight.*more factors than a head has"):
        read_gguf(path)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_in_metadata(tmp_path: Path, kind: str):
    extra = {
        "llama.rope.scaling.type": kind,
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    opened = read_gguf(write(tmp_path / "m.gguf", hugging_face_weights(), extra=extra))
    assert opened.config["rope_scaling"] == {
        "rope_type": kind,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }


@pytest.mark.parametrize(
    ("extra", "factor"),
    [
        ({"llama.rope.scale_linear": 4.0}, 4.0),
        ({"llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scaling.factor": 2.0, "llama.rope.scale_linear": 4.0}, 2.0),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scaling.factor": 0.0}, None),
    ],
)
def test_a_scaling_factor_without_a_type_is_linear_as_in_llama_cpp(
    tmp_path: Path, extra: dict, factor: float | None
):
    opened = read_gguf(write(tmp_path / "m.gguf", hugging_face_weights(), extra=extra))
    found = read_config(opened.config).rope.scaling
    assert found == (None if factor is None else LinearScaling(factor=factor))


def test_two_scalings_at_once_are_refused(tmp_path: Path):
    path = write(
        tmp_path / "m.gguf",
        hugging_face_weights(),
        extra={"llama.rope.scale_linear": 2.0},
        factors=llama3_factors(50_000_000.0, 32.0),
    )
    with pytest.raises(UserError, match=r"linear and the factors .* are not supported"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("arch", "extra", "reason"),
    [
        ("llama", {"llama.expert_count": 8}, "mixture of experts"),
        ("qwen3moe", {}, r"mixture of experts \(qwen3moe\)"),
        ("mamba", {}, "architecture 'mamba'; supported: llama, qwen2, qwen3"),
        ("llama", {"split.count": 3}, "one of 3 parts, but its name does not end in -00001-of-"),
        ("llama", {"general.type": "adapter"}, "holds no model but a GGUF file of type 'adapter'"),
        ("llama", {"llama.rope.scaling.attn_factor": 2.0}, "multiplies RoPE by the factor 2.0"),
    ],
)
def test_unsupported_models_are_named(tmp_path: Path, arch: str, extra: dict, reason: str):
    path = write(tmp_path / "m.gguf", hugging_face_weights(), arch=arch, extra=extra)
    with pytest.raises(UserError, match=rf"m\.gguf.*{reason}"):
        read_gguf(path)


@pytest.mark.parametrize("key", ["block_count", "attention.head_count", "context_length"])
def test_numbers_in_metadata_are_whole_and_no_booleans(tmp_path: Path, key: str):
    path = write(tmp_path / "m.gguf", hugging_face_weights())
    content, name = path.read_bytes(), f"llama.{key}".encode()
    at = content.index(name) + len(name)
    for kind, value in ((6, struct.pack("<f", 2.5)), (4, struct.pack("<I", 0))):
        path.write_bytes(content[:at] + struct.pack("<I", kind) + value + content[at + 8 :])
        with pytest.raises(UserError, match=rf"'llama\.{key}' is \S+, not a whole number > 0"):
            read_gguf(path)


@pytest.mark.parametrize("name", ["bos", "eos", "eot"])
@pytest.mark.parametrize("value", [-5, VOCAB, 2.5])
def test_ids_that_start_or_end_a_text_are_in_the_vocabulary(tmp_path: Path, name: str, value: Any):
    metadata = LETTERS | {f"tokenizer.ggml.{name}_token_id": value}
    with pytest.raises(UserError, match=rf"m.gguf: [be]os_token_id {value} is none of .* 0 to 39"):
        Tokenizer.from_gguf(metadata, "m.gguf")
    padded = Tokenizer.from_gguf(LETTERS | {"tokenizer.ggml.padding_token_id": value})
    assert padded.pad_id == 0


def test_partial_rotation_is_refused(tmp_path: Path):
    extra = {"llama.attention.key_length": 2 * HEAD_DIM}
    with pytest.raises(UserError, match="rotates only 16 of 32"):
        read_gguf(write(tmp_path / "m.gguf", hugging_face_weights(), extra=extra))
