"""llama.cpp reads the GGUF files that are written here, and computes the same."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lwm
from lwm.convert.export import save_model
from lwm.convert.gguf import write_gguf
from lwm.convert.open import open_model_files
from lwm.files import ASSETS
from lwm.hub.catalog import find_model, locate
from lwm.model.config import LinearScaling, ModelOverrides, Rope, RopeScaling
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

llama_cpp: Any = pytest.importorskip("llama_cpp")

PROMPTS = {
    "smollm2-135m-instruct": (
        "The capital of France is",
        "Once upon a time, in a small village,",
        "def fibonacci(n):\n    ",
        "Water boils at 100 degrees",
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "tiny-vision": (
        "You are a helpful assistant. USER: What is in the picture? ASSISTANT:",
        "You are a helpful assistant. USER: Generate an image of a disk ASSISTANT: <vision>",
        "<vision>",
        "A red",
        "1 2 3",
    ),
}
HARD = ("héllo 日本語 😀 cafe\u0301", "a\n\nb\t c\r\n \n", "12345 6 7,890.12 x²", "  it's they'LL ")
TOKENS = 32


def open_in_llama_cpp(path: Path):
    """Opens a file with a cache in float32 and without flash attention."""
    f32 = 0
    return llama_cpp.Llama(
        str(path),
        n_ctx=256,
        n_threads=2,
        n_threads_batch=2,
        type_k=f32,
        type_v=f32,
        flash_attn=False,
        verbose=False,
    )


def last_logits(model) -> np.ndarray:
    found = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
    return np.ctypeslib.as_array(found, shape=(model.n_vocab(),)).copy()


def continued(model, ids: list[int]) -> list[int]:
    """Returns the likeliest id, each time."""
    model.reset()
    given, found = ids, []
    for _ in range(TOKENS):
        model.eval(given)
        found.append(int(last_logits(model).argmax()))
        given = found[-1:]
    return found


@pytest.fixture
def ours(place):
    """Returns our logits of each position of a row."""
    forward = jax.jit(lambda model, tokens, packing: model(tokens, packing))

    def run(model, ids: list[int]) -> np.ndarray:
        with jax.set_mesh(model.mesh):
            padded = [*ids, *[0] * (-len(ids) % 64)]
            return np.asarray(forward(model.llama, *place(model.mesh, [padded])))[0, : len(ids)]

    return run


def exported(name: str, file: Path, **options) -> Path:
    path = locate(find_model(name))
    if path is None:
        pytest.skip(f"{name} is not here")
    write_gguf(open_model_files(path), file, **options)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTS)
def test_the_likeliest_tokens_are_the_same(ours, tmp_path, name):
    file = exported(name, tmp_path / "m.gguf", dtype="float32")
    model, theirs = lwm.load(file), open_in_llama_cpp(file)
    for text in (*PROMPTS[name], *HARD):
        ids = theirs.tokenize(text.encode(), add_bos=False, special=True)
        assert ids == model.tokenizer.encode(text)
    for text in PROMPTS[name]:
        ids = model.tokenizer.encode(text)
        if model.tokenizer.add_bos:
            assert model.tokenizer.bos_id is not None
            ids = [model.tokenizer.bos_id, *ids]
        found = continued(theirs, ids)
        logits = ours(model, ids + found)
        assert logits[len(ids) - 1 : -1, : theirs.n_vocab()].argmax(-1).tolist() == found, text


LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.5, high_freq_factor=4.0, original_context=16)
VARIANTS = {
    "tied": {"tie_embeddings": True, "rope": Rope(theta=1234.5, scaling=LinearScaling(factor=4.0))},
    "qkv_bias": {"qkv_bias": True, "num_kv_heads": 4, "head_dim": 4},
    "qk_norm": {"qk_norm": True, "head_dim": 16, "norm_eps": 1e-5},
    "llama3": {"rope": Rope(theta=100.0, scaling=LLAMA3)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_and_scaling(mesh, tiny, init, ours, tmp_path, variant):
    tokenizer = Tokenizer.open(ASSETS / "tiny-vision")
    model = init(tiny(tokens=TokenSpace(text=tokenizer.vocab_size), **VARIANTS[variant]))
    rng = np.random.default_rng(0)  # no bias of 0, and no norm of 1
    model = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape).astype("float32"), model
    )
    save_model(model, tokenizer, tmp_path / "hf")
    write_gguf(open_model_files(tmp_path / "hf"), file := tmp_path / "m.gguf")
    theirs = open_in_llama_cpp(file)
    ids = list(range(100, 180))
    found = continued(theirs, ids)
    logits = ours(lwm.load(file), ids + found)
    assert logits[len(ids) - 1 : -1, : theirs.n_vocab()].argmax(-1).tolist() == found
    theirs.reset()
    theirs.eval(ids)
    wanted = logits[len(ids) - 1, : theirs.n_vocab()]
    assert np.abs(last_logits(theirs) - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
def test_other_types_are_near(ours, tmp_path, dtype):
    file = exported("tiny-vision", tmp_path / "m.gguf", dtype=dtype)
    model, theirs = lwm.load(file), open_in_llama_cpp(file)
    ids = model.tokenizer.encode(PROMPTS["tiny-vision"][0])
    theirs.eval(ids)
    logits = ours(model, ids)[-1, : theirs.n_vocab()]
    # llama.cpp rounds activations to the type of the weights.
    assert np.abs(last_logits(theirs) - logits).max() < 0.03 * np.abs(logits).max()


def test_pieces_are_merged_alike(fixtures, ours, tmp_path):
    (folder := tmp_path / "original").mkdir()
    shutil.copy(fixtures / "text_tiny_params_scan.msgpack", folder / "params")
    shutil.copy(fixtures / "tokenizer/tokenizer.model", folder)
    given = ModelOverrides(config=f"json::{fixtures / 'text_tiny_config.json'}")
    write_gguf(open_model_files(folder, given=given), file := tmp_path / "m.gguf")
    model, theirs = lwm.load(file), open_in_llama_cpp(file)
    for text in (*PROMPTS["tiny-vision"], *HARD, "  two  spaces", "<0x41> \u2581"):
        ids = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == model.tokenizer.encode(text, special=False), text
    ids = [1, *model.tokenizer.encode(PROMPTS["tiny-vision"][0])]
    found = continued(theirs, ids)
    assert ours(model, ids + found)[len(ids) - 1 : -1, :512].argmax(-1).tolist() == found


def test_prompts_hold_vision_ids_by_name(tmp_path):
    theirs = open_in_llama_cpp(exported("tiny-vision", tmp_path / "m.gguf"))
    ids = theirs.tokenize(b"<|vision_5|><|end_of_vision|>", add_bos=False, special=True)
    assert ids == [1024 + 5, 1024 + 1025]
    assert theirs.detokenize(ids, special=True).decode().strip() == "<|vision_5|><|end_of_vision|>"
    assert 1024 + 5 not in theirs.tokenize(b"<|vision_5|>", add_bos=False, special=False)
