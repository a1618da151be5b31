"""Models written as GGUF files: read back exactly as rounded, by the `gguf` package too."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

import lwm
from lwm.convert import gguf as written
from lwm.convert.convert import convert_model
from lwm.convert.export import save_model
from lwm.convert.gguf import write_gguf
from lwm.convert.open import open_model_files
from lwm.errors import UserError
from lwm.formats.safetensor_files import open_safetensors
from lwm.model.config import LinearScaling, Rope, RopeScaling
from lwm.sampling_params import FrameSampling, VisionSampling
from lwm.tokens import TokenSpace

KINDS = {
    "float32": Kind.F32,
    "float16": Kind.F16,
    "bfloat16": Kind.BF16,
    "int8": Kind.Q8_0,
    "int4": Kind.Q4_0,
}
LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.5, high_freq_factor=4.0, original_context=64)
VARIANTS = {
    "tied": {"tie_embeddings": True, "rope": Rope(theta=1234.5, scaling=LinearScaling(factor=4.1))},
    "qkv_bias": {"qkv_bias": True, "num_kv_heads": 4, "head_dim": 4, "mlp_dim": 48},
    "qk_norm": {"qk_norm": True, "head_dim": 16, "norm_eps": 1e-5},
    "llama3": {"rope": Rope(theta=500_000.0, scaling=LLAMA3)},
}
ARCHS = {"qkv_bias": "qwen2", "qk_norm": "qwen3"}


def rounded(weight: np.ndarray, kind: Kind) -> np.ndarray:
    """Rounds a matrix of Hugging Face's as the `gguf` package does; vectors stay as they are."""
    weight = weight.astype(np.float32)
    if weight.ndim == 1:
        return weight
    if kind in (Kind.Q8_0, Kind.Q4_0) and weight.shape[-1] % 32:
        kind = Kind.F16
    return gguf.dequantize(gguf.quantize(weight, kind), kind).astype(np.float32)


@pytest.fixture
def source(mesh, tiny, init, byte_tokenizer, tmp_path):
    """A vision-language model in Hugging Face's format."""
    tokens = TokenSpace(text=260, vision=40, codes=32)
    config = tiny(tokens=tokens, num_kv_heads=4, init_std=0.02)
    save_model(init(config), byte_tokenizer, tmp_path / "hf")
    return open_model_files(tmp_path / "hf")


@pytest.fixture(scope="module")
def forward():
    return jax.jit(lambda model, tokens, packing: model(tokens, packing))


@pytest.mark.parametrize("dtype", KINDS)
def test_the_weights_and_logits_are_those_so_rounded(source, place, forward, tmp_path, dtype):
    write_gguf(source, tmp_path / "m.gguf", dtype=dtype)
    opened = open_model_files(tmp_path / "m.gguf")
    # The token table has eight bits at least.
    kinds = {name: KINDS[dtype] for name in source.tensors}
    if dtype == "int4":
        kinds["model.embed_tokens.weight"] = Kind.Q8_0
    wanted = {name: rounded(source.tensors[name], kind) for name, kind in kinds.items()}
    assert {*opened.tensors} == {*wanted}
    for name, weight in wanted.items():
        np.testing.assert_array_equal(opened.tensors[name], weight, err_msg=name)
    assert (opened.config, opened.sampling) == (source.config, source.sampling)
    written_as = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    found = {each.tensor_type for each in written_as if len(each.shape) > 1}
    assert found == {*kinds.values()}
    save_file(wanted, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    models = [lwm.load(path) for path in (tmp_path / "m.gguf", tmp_path / "hf")]
    rows = place(models[0].mesh, [[1, 2, 259, 257, 260, 0, 258, 293]])
    with jax.set_mesh(models[0].mesh):
        np.testing.assert_array_equal(*(forward(model.llama, *rows) for model in models))


def test_a_model_of_the_original_with_all_of_its_vision_ids(published, tmp_path):
    folder, config, given = published
    source = open_model_files(folder, given=given)
    convert_model(source, tmp_path / "hf")
    exact = open_safetensors(tmp_path / "hf")
    write_gguf(source, tmp_path / "m.gguf", dtype="bfloat16")
    opened = open_model_files(tmp_path / "m.gguf")
    for name in exact:
        wanted = rounded(exact[name], Kind.BF16)
        np.testing.assert_array_equal(opened.tensors[name], wanted, err_msg=name)
    assert opened.config == config


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_and_scaling(mesh, tiny, init, byte_tokenizer, tmp_path, variant):
    config = tiny(tokens=TokenSpace(text=260), init_std=0.02, **VARIANTS[variant])
    save_model(init(config), byte_tokenizer, tmp_path / "hf")
    source = open_model_files(tmp_path / "hf")
    for dtype in ("float32", "int8"):
        write_gguf(source, tmp_path / "m.gguf", dtype=dtype, overwrite=True)
        opened = open_model_files(tmp_path / "m.gguf")
        assert opened.config == config
        for name in source.tensors:
            wanted = rounded(source.tensors[name], KINDS[dtype])
            np.testing.assert_array_equal(opened.tensors[name], wanted, err_msg=name)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    arch = ARCHS.get(variant, "llama")
    assert fields["general.architecture"].contents() == arch
    assert fields[f"{arch}.attention.head_count_kv"].contents() == config.num_kv_heads
    assert (
        len(fields["tokenizer.ggml.tokens"].contents()) == fields[f"{arch}.vocab_size"].contents()
    )


def test_queries_and_keys_of_llama_have_neighbouring_pairs(source, tmp_path):
    write_gguf(source, tmp_path / "m.gguf")
    found = {each.name: each.data for each in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    theirs = source.tensors["model.layers.1.self_attn.k_proj.weight"].reshape(4, 2, 4, 32)
    ours = found["blk.1.attn_k.weight"].reshape(4, 4, 2, 32)
    np.testing.assert_array_equal(ours[3, 1, 0], theirs[3, 0, 1])  # of pair 1, the first half
    value = source.tensors["model.layers.1.self_attn.v_proj.weight"]
    np.testing.assert_array_equal(found["blk.1.attn_v.weight"], value)


def test_vision_ids_are_named_and_their_sampling_is_kept(source, tmp_path):
    sampling = VisionSampling(image=FrameSampling(guidance=3.0), video=FrameSampling(top_k=7))
    write_gguf(dataclasses.replace(source, sampling=sampling), tmp_path / "m.gguf")
    opened = open_model_files(tmp_path / "m.gguf")
    assert opened.sampling == sampling
    assert opened.tokenizer.vocab_size == 258
    name = "<|vision_5|>"
    assert opened.tokenizer.encode(name) == source.tokenizer.encode(name)
    tokens = gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == len({*tokens}) == 300
    assert tokens[258:261] == ["[PAD258]", "[PAD259]", "<|vision_0|>"]
    assert tokens[291:295] == [
        "<|vision_31|>", "<|end_of_frame|>", "<|end_of_vision|>", "<|vision_unused_0|>"
    ]  # fmt: skip


def test_the_type_is_that_of_the_weights(source, tmp_path):
    tensors = {name: source.tensors[name].astype("bfloat16") for name in source.tensors}
    write_gguf(dataclasses.replace(source, tensors=tensors), tmp_path / "m.gguf")
    kinds = {each.name: each.tensor_type for each in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == Kind.BF16
    assert kinds["output_norm.weight"] == Kind.F32


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"qkv_bias": True, "head_dim": 16}, "reads qwen2 with heads of width / heads alone"),
        ({"qk_norm": True, "rope": Rope(scaling=LLAMA3)}, "as Llama 3 does in Llama's models"),
        ({"qk_norm": True, "qkv_bias": True}, "has both qkv_bias and qk_norm"),
    ],
)
def test_models_that_llama_cpp_does_not_know_are_refused(tiny, byte_tokenizer, changes, reason):
    with pytest.raises(UserError, match=reason):
        written.arch_of(tiny(tokens=TokenSpace(text=260), **changes), byte_tokenizer)


def test_numbers_beyond_float16_are_refused(source, tmp_path):
    def changed(name):
        tensors = {each: source.tensors[each] for each in source.tensors}
        return dataclasses.replace(source, tensors=tensors | {name: tensors[name] + 1e5})

    write_gguf(changed("model.norm.weight"), tmp_path / "m.gguf", dtype="float16")  # in float32
    with pytest.raises(UserError, match=r"^output.weight holds numbers above the largest of floa"):
        write_gguf(changed("lm_head.weight"), tmp_path / "n.gguf", dtype="float16")
    assert sorted(os.listdir(tmp_path)) == ["hf", "m.gguf"]


def test_places_that_are_refused(source, tmp_path):
    def refusal(target, **options):
        with pytest.raises(UserError) as caught:
            write_gguf(source, target, **options)
        return str(caught.value)

    assert "does not end in .gguf" in refusal(tmp_path / "m")
    (tmp_path / "m.gguf").write_text("mine")
    assert "exists; choose another name, or give --overwrite" in refusal(tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"
    (tmp_path / "d.gguf").mkdir()
    assert "is a folder" in refusal(tmp_path / "d.gguf", overwrite=True)
    write_gguf(source, tmp_path / "m.gguf", overwrite=True)
    itself = open_model_files(tmp_path / "m.gguf")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "m.gguf")
    with pytest.raises(UserError, match="is the model itself; choose another name"):
        write_gguf(itself, tmp_path / "link.gguf", overwrite=True)
    assert open_model_files(tmp_path / "m.gguf").config == source.config


def test_nothing_is_left_of_a_run_that_fails(source, tmp_path, monkeypatch):
    append, before = written._append, sorted(os.listdir(tmp_path))
    for error, match in (
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "No space left .*; make room, or choose",
        ),
        (
            OSError(errno.EIO, os.strerror(errno.EIO)),
            "m.gguf cannot be written: .*; choose another",
        ),
        (KeyboardInterrupt("Ctrl-C"), "Ctrl-C"),
    ):

        def fail(out, array, error=error):
            append(out, array)
            if out.tell() > 100_000:
                raise error

        monkeypatch.setattr(written, "_append", fail)
        with pytest.raises((UserError, KeyboardInterrupt), match=match):
            write_gguf(source, tmp_path / "m.gguf")
        assert sorted(os.listdir(tmp_path)) == before


def test_too_little_room_is_seen_before_anything_is_read(source, tmp_path, monkeypatch):
    usage = written.shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(written.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(written, "_append", lambda *_: pytest.fail("weights were written"))
    with pytest.raises(UserError, match=r"no space for .*m\.gguf: it needs .* GB and"):
        write_gguf(source, tmp_path / "m.gguf")


RUN = """
import sys
from pathlib import Path
from lwm.convert import gguf
from lwm.convert.open import open_model_files
def stop(done, total):
    if done > total / 2:
        print("half", flush=True)
        sys.stdin.read()
gguf.write_gguf(open_model_files(sys.argv[1]), Path(sys.argv[2]), progress=stop)
"""


@pytest.mark.slow
def test_after_a_kill_the_next_run_starts_over(source, tmp_path):
    file = tmp_path / "out" / "m.gguf"
    with subprocess.Popen(
        [sys.executable, "-c", RUN, source.source, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"half\n"
        with pytest.raises(UserError, match=r"m\.gguf is being written by another process"):
            write_gguf(source, file)
        run.send_signal(signal.SIGKILL)
    assert os.listdir(file.parent) == [".m.gguf.partial"]
    write_gguf(source, file)
    assert os.listdir(file.parent) == ["m.gguf"]
    assert open_model_files(file).config == source.config
