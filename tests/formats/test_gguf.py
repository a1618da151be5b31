"""GGUF files written by the `gguf` package, read back under Hugging Face's names and layout."""

import contextlib
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from lwm.convert.huggingface import read_config
from lwm.convert.open import open_model_files, open_tokens
from lwm.errors import UserError
from lwm.formats.gguf import read_gguf
from lwm.formats.gguf_file import find_gguf, is_gguf, read_contents
from lwm.hub.catalog import find_model, locate
from lwm.model.config import LinearScaling
from lwm.tokenizer.template import render_chat
from lwm.tokenizer.tokenizer import Tokenizer

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


def test_f32_is_exact_and_unpermuted(tmp_path: Path):
    weights = hugging_face_weights()
    found = read_gguf(write(tmp_path / "m.gguf", weights)).tensors
    assert set(found) == set(weights)
    for name, weight in weights.items():
        assert found.shapes[name] == weight.shape
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], weight)


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


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Kind.F16, 2e-3),
        (Kind.BF16, 2e-2),
        (Kind.Q8_0, 2e-2),
        (Kind.Q5_0, 2e-1),
        (Kind.Q5_1, 2e-1),
        (Kind.Q4_0, 4e-1),
        (Kind.Q4_1, 4e-1),
    ],
)
def test_quantised_files(tmp_path: Path, kind: Kind, error: float):
    weights = {name: np.clip(w, -3, 3) for name, w in hugging_face_weights().items()}
    found = read_gguf(write(tmp_path / "m.gguf", weights, kind=kind)).tensors
    for name, weight in weights.items():
        np.testing.assert_allclose(found[name], weight, rtol=0, atol=error)
    name = "model.layers.1.mlp.down_proj.weight"
    expected = gguf.dequantize(gguf.quantize(weights[name], kind), kind)
    np.testing.assert_array_equal(found[name], expected)


def block(kind: Kind) -> tuple[bytes, np.ndarray]:
    """Write one block of 32 numbers by hand, with what it stands for."""
    nibbles = np.arange(32) % 16
    packed = (nibbles[:16] | nibbles[16:] << 4).astype(np.uint8).tobytes()
    half, three = np.float16(0.5).tobytes(), np.float16(3).tobytes()
    if kind == Kind.Q8_0:
        return half + np.arange(-16, 16).astype(np.int8).tobytes(), 0.5 * np.arange(-16, 16)
    if kind == Kind.Q4_0:
        return half + packed, 0.5 * (nibbles - 8.0)
    return half + three + packed, 0.5 * nibbles + 3.0


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1])
def test_blocks_by_hand(tmp_path: Path, kind: Kind):
    data, values = block(kind)
    weights = hugging_face_weights()
    path = write(tmp_path / "m.gguf", weights, kind=kind)
    name = "model.layers.0.mlp.up_proj.weight"
    stored = gguf.quantize(weights[name], kind).tobytes()
    content = path.read_bytes()
    assert content.count(stored) == 1
    path.write_bytes(content.replace(stored, data * (FFN * HIDDEN // 32)))
    expected = np.tile(values, FFN * HIDDEN // 32).reshape(FFN, HIDDEN)
    np.testing.assert_array_equal(read_gguf(path).tensors[name], expected.astype(np.float32))


def test_tied_embeddings(tmp_path: Path):
    opened = read_gguf(write(tmp_path / "m.gguf", hugging_face_weights(tied=True)))
    assert opened.config["tie_word_embeddings"]
    assert "lm_head.weight" not in opened.tensors


def test_qwen2_has_biases_and_keeps_its_order(tmp_path: Path):
    weights = hugging_face_weights()
    for i in range(LAYERS):
        for role, (name, shape) in LINEAR.items():
            if role in ("attn_q", "attn_k", "attn_v"):
                bias = np.arange(shape[0], dtype=np.float32)
                weights[f"model.layers.{i}.{name}.bias"] = bias
    opened = read_gguf(write(tmp_path / "m.gguf", weights, arch="qwen2"))
    assert opened.config["model_type"] == "qwen2"
    assert opened.config["attention_bias"]
    for name, weight in weights.items():
        np.testing.assert_array_equal(opened.tensors[name], weight)


def test_qwen3_has_query_and_key_norms(tmp_path: Path):
    weights = hugging_face_weights()
    for i in range(LAYERS):
        for name in ("q_norm", "k_norm"):
            weights[f"model.layers.{i}.self_attn.{name}.weight"] = np.ones(HEAD_DIM, np.float32)
    sized = {"qwen3.attention.key_length": HEAD_DIM}
    opened = read_gguf(write(tmp_path / "m.gguf", weights, arch="qwen3", extra=sized))
    assert opened.config["model_type"] == "qwen3"
    assert set(opened.tensors) == set(weights)


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


def entry_of(content: bytes, name: str) -> int:
    """Return where the offset of a matrix stands in the table of tensors."""
    at = content.index(name.encode()) + len(name)
    return at + 4 + 2 * 8 + 4


def test_tensors_that_overlap_or_are_not_aligned_are_refused(tmp_path: Path):
    path = write(tmp_path / "m.gguf", hugging_face_weights())
    content = path.read_bytes()
    one, two = (entry_of(content, f"blk.0.{name}.weight") for name in ("attn_q", "attn_k"))
    for offset, says in (
        (content[one : one + 8], r"tensors 'blk\.0\.attn_\w\.weight' and .* overlap; fetch"),
        (
            struct.pack("<Q", 33),
            "a place of 33, no multiple of 32, appears while reading the",
        ),
        (struct.pack("<Q", 32), r"tensors 'token_embd\.weight' and 'blk\.0\.attn_k.* overlap"),
    ):
        path.write_bytes(content[:two] + offset + content[two + 8 :])
        with pytest.raises(UserError, match=rf"m\.gguf.*{says}"):
            read_gguf(path)


def test_names_that_come_twice_are_refused(tmp_path: Path):
    path = write(tmp_path / "m.gguf", hugging_face_weights(), extra={"llama.aaaa": 1})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"blk.1.attn_q.weight", b"blk.1.attn_k.weight"))
    with pytest.raises(UserError, match=r"a second one of this name appears .* 'blk\.1\.attn_k"):
        read_gguf(path)
    path.write_bytes(content.replace(b"general.architecture", b"llama.context_length"))
    with pytest.raises(UserError, match=r"a second one .* metadata entry 'llama.context_length'"):
        read_gguf(path)


@pytest.mark.parametrize("alignment", [0, 24, 33])
def test_an_alignment_that_is_no_power_of_two_is_refused(tmp_path: Path, alignment: int):
    path = tmp_path / "m.gguf"
    with contextlib.suppress(ZeroDivisionError, ValueError):
        write(path, hugging_face_weights(), extra={"general.alignmenx": alignment})
    path.write_bytes(path.read_bytes().replace(b"general.alignmenx", b"general.alignment"))
    with pytest.raises(UserError, match=f"an alignment of {alignment} appears"):
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


def split(path: Path, weights: dict[str, np.ndarray], count: int) -> list[Path]:
    """Write a model as `llama-gguf-split` does: metadata in the first part alone."""
    whole = write(path / "whole", weights)
    reader = gguf.GGUFReader(whole)
    size = -(-len(reader.tensors) // count)
    parts = []
    for number in range(count):
        part = path / f"m-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            for field in reader.fields.values():
                if field.name.startswith("llama."):
                    writer.add_key_value(field.name, field.contents(), field.types[0])
        else:
            writer.kv_data[0].clear()
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number * size : (number + 1) * size]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(part)
    whole.unlink()
    return parts


def test_a_split_model_opens_from_any_part(tmp_path: Path):
    weights = hugging_face_weights()
    parts = split(tmp_path, weights, 3)
    for part in parts:
        found = read_gguf(part).tensors
        assert {*found} == {*weights}
        for name, weight in weights.items():
            np.testing.assert_array_equal(found[name], weight)
    assert find_gguf(tmp_path) == parts[0]


def test_a_part_that_is_missing_or_another_is_named(tmp_path: Path):
    parts = split(tmp_path, hugging_face_weights(), 3)
    kept = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(UserError, match=r"is one of 3 parts; m-00002-of-00003\.gguf must lie besi"):
        read_gguf(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(UserError, match=r"m-00002-of-00003\.gguf is not part 2 of 3, as its name"):
        read_gguf(parts[2])
    parts[1].write_bytes(kept)
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(UserError, match=r"renamed.gguf is one of 3 parts, but its name"):
        read_gguf(tmp_path / "renamed.gguf")


def test_several_models_in_a_folder_are_listed_and_projectors_are_none(tmp_path: Path):
    weights = {"model.norm.weight": np.zeros(HIDDEN, np.float32)}
    assert find_gguf(tmp_path) is None
    model = write(tmp_path / "sha256-1a2b", weights)
    (tmp_path / "README.md").write_text("GGuF")
    assert is_gguf(model)
    assert find_gguf(tmp_path) == model  # by its content
    model = model.rename(tmp_path / "a.gguf")
    write(tmp_path / "mmproj-a.gguf", weights)
    write(tmp_path / "b.gguf", weights, arch="clip")
    write(tmp_path / "c.gguf", weights, extra={"general.type": "adapter"})
    (tmp_path / "._a.gguf").write_bytes(b"of macOS")
    assert find_gguf(tmp_path) == model
    write(tmp_path / "d.gguf", weights)
    with pytest.raises(UserError, match=r"several GGUF models: a\.gguf, d\.gguf; give one file"):
        find_gguf(tmp_path)


LETTERS: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [chr(ord("A") + number) for number in range(VOCAB)],
}


def test_a_gguf_file_opens_by_its_content(tmp_path: Path):
    """Beside a `config.json`, in a folder, and under any name, such as those of Ollama."""
    blob = write(tmp_path / "sha256-1a2b", hugging_face_weights(), extra=LETTERS)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for path in (blob, tmp_path):
        opened = open_model_files(path)
        assert (opened.config.dim, opened.source) == (HIDDEN, blob)
        assert open_tokens(path)[1] == opened.config.tokens
        assert Tokenizer.open(path).vocab_size == VOCAB
    with pytest.raises(UserError, match="is a GGUF file; give it without a prefix"):
        open_model_files(f"params::{blob}")
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        open_model_files("/dev/null")
    blob.unlink()
    with pytest.raises(UserError, match=r"holds no \*\.safetensors file; fetch it again"):
        open_model_files(tmp_path)


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


def test_missing_and_foreign_tensors_are_named(tmp_path: Path):
    weights = hugging_face_weights()
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UserError, match=r"lacks tensor 'blk\.1\.ffn_up\.weight'"):
        read_gguf(write(tmp_path / "m.gguf", weights))
    path = write(tmp_path / "n.gguf", hugging_face_weights())
    path.write_bytes(path.read_bytes().replace(b"blk.0.ffn_gate.", b"blk.0.ffn_lost."))
    with pytest.raises(UserError, match=r"'blk\.0\.ffn_lost\.weight' is not part of a dense"):
        read_gguf(path)


def test_truncation_is_reported_wherever_it_falls(tmp_path: Path):
    content = write(tmp_path / "m.gguf", hugging_face_weights()).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 2000, 7), len(content) // 2, len(content) - 33]:
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"cut\.gguf"):
            read_gguf(path)
    with pytest.raises(UserError, match=r"tensor 'blk\.1\.\w+\.weight' ends at byte [\d,]+ but"):
        read_gguf(path)


@pytest.mark.parametrize("value", [0, 6, 9, 255])
def test_corrupted_headers_are_reported(tmp_path: Path, value: int):
    """Bytes of the header in turn replaced: the file is read or refused by name, never a crash."""
    content = bytearray(write(tmp_path / "m.gguf", hugging_face_weights()).read_bytes())
    path = tmp_path / "bad.gguf"
    for at in range(value % 5, 1500, 5):
        kept, content[at] = content[at], value
        path.write_bytes(content)
        content[at] = kept
        with contextlib.suppress(UserError):
            read_gguf(path)


def header_of(path: Path, *values: bytes) -> Path:
    """Write a GGUF file without tensors and with these values, named `a`, `b` and so on."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    named = [struct.pack("<Q", 1) + bytes([97 + i]) + each for i, each in enumerate(values)]
    path.write_bytes(head + b"".join(named))
    return path


def test_arrays_of_a_header_that_take_much_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = header_of(tmp_path / "m.gguf", struct.pack("<IIQ", 9, 0, 1 << 33))
    os.truncate(path, 1 << 34)  # a hole
    with pytest.raises(UserError, match=r"more than 4,194,304 values .* entry 'a'; .* LWM_MAX_VAL"):
        read_gguf(path)
    path = header_of(tmp_path / "m.gguf", struct.pack("<IQ", 8, 1 << 33))
    os.truncate(path, 1 << 34)
    with pytest.raises(UserError, match=r"more than 268,435,456 bytes of text .* LWM_MAX_RECORD"):
        read_gguf(path)
    strings = struct.pack("<IIQ", 9, 8, 6) + bytes(8 * 6)
    path = header_of(tmp_path / "m.gguf", strings, strings)
    monkeypatch.setenv("LWM_MAX_VALUES", "10")
    with pytest.raises(UserError, match="more than 10 values"):
        read_contents(path)
    monkeypatch.setenv("LWM_MAX_VALUES", "14")
    assert read_contents(path)[0] == {"a": [""] * 6, "b": [""] * 6}


def test_not_gguf_and_absent(tmp_path: Path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError, match="not a GGUF file"):
        read_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(100))
    with pytest.raises(UserError, match="big-endian"):
        read_gguf(path)
    with pytest.raises(UserError, match="does not exist"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="cannot be read"):
        read_gguf(tmp_path)


def test_nan_is_reported_by_tensor(tmp_path: Path):
    weights = hugging_face_weights()
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    tensors = read_gguf(write(tmp_path / "m.gguf", weights)).tensors
    with pytest.raises(UserError, match=r"m\.gguf is corrupted.*'blk\.1\.ffn_up\.weight'"):
        tensors["model.layers.1.mlp.up_proj.weight"]


@pytest.mark.torch
def test_smollm2_answers_in_transformers():
    """Weights, config, tokenizer and template together: a wrong one gives no sensible answer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = locate(find_model("smollm2-135m-instruct"))
    if path is None:
        pytest.skip("smollm2-135m-instruct is not on this machine")
    opened = read_gguf(path)
    weights = {name: torch.tensor(weight) for name, weight in opened.tensors.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**opened.config))
    model.load_state_dict(weights, strict=True)
    tokenizer = Tokenizer.from_gguf(opened.metadata)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = render_chat(question, tokenizer)
    with torch.no_grad():
        answer = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert "The capital of France is Paris." in tokenizer.decode(answer[0, len(ids) :].tolist())
