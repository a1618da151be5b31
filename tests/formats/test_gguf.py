"""GGUF files written by the `gguf` package, read back under Hugging Face's names and layout."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from lwm.convert.open import open_model_files, open_tokens
from lwm.errors import UserError
from lwm.formats.gguf import read_gguf
from lwm.hub.catalog import find_model, locate
from lwm.tokenizer.template import render_chat
from lwm.tokenizer.tokenizer import Tokenizer

from .gguf_files import (
    FFN,
    HEAD_DIM,
    HIDDEN,
    LAYERS,
    LETTERS,
    LINEAR,
    VOCAB,
    hugging_face_weights,
    write,
)


def test_f32_is_exact_and_unpermuted(tmp_path: Path):
    weights = hugging_face_weights()
    found = read_gguf(write(tmp_path / "m.gguf", weights)).tensors
    assert set(found) == set(weights)
    for name, weight in weights.items():
        assert found.shapes[name] == weight.shape
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], weight)


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


def test_missing_and_foreign_tensors_are_named(tmp_path: Path):
    weights = hugging_face_weights()
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UserError, match=r"lacks tensor 'blk\.1\.ffn_up\.weight'"):
        read_gguf(write(tmp_path / "m.gguf", weights))
    path = write(tmp_path / "n.gguf", hugging_face_weights())
    path.write_bytes(path.read_bytes().replace(b"blk.0.ffn_gate.", b"blk.0.ffn_lost."))
    with pytest.raises(UserError, match=r"'blk\.0\.ffn_lost\.weight' is not part of a dense"):
        read_gguf(path)


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
