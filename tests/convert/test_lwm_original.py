"""Models written for the original LWM: what it published, to the bit, and back."""

import errno
import json
import os
import pickle
import pickletools
import shutil

import jax
import msgpack
import numpy as np
import pytest

from lwm.convert import lwm_original as written
from lwm.convert.convert import convert_model
from lwm.convert.export import save_model
from lwm.convert.gguf import write_gguf
from lwm.convert.lwm import LwmTensors
from lwm.convert.lwm_original import write_lwm_original
from lwm.convert.open import open_model_files, open_tokens
from lwm.errors import UserError
from lwm.formats.pickles import read_pickle
from lwm.model.config import LinearScaling, ModelOverrides, Rope, preset
from lwm.sampling_params import FrameSampling, VisionSampling
from lwm.tokens import TokenSpace
from lwm.vqgan.checkpoint import read_vqgan


@pytest.fixture
def source(published):
    folder, _, given = published
    return open_model_files(folder, given=given)


def arrays_of(path):
    """Reads a stream as the original does, with `msgpack` and Flax's rule for arrays."""

    def array(code: int, data: bytes) -> np.ndarray:
        assert code == 1
        shape, dtype, buffer = msgpack.unpackb(data)
        return np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)

    with path.open("rb") as file:
        stream = msgpack.Unpacker(file, max_buffer_size=0)
        return {"/".join(key): msgpack.unpackb(value, ext_hook=array) for key, value in stream}


@pytest.mark.parametrize("name", ["text_tiny", "vision_full"])
def test_a_file_of_the_original_is_written_as_it_was(fixtures, tmp_path, name):
    (folder := tmp_path / "original").mkdir()
    shutil.copy(fixtures / f"{name}_params_scan.msgpack", folder / "params")
    shutil.copy(fixtures / "tokenizer/tokenizer.model", folder)
    config = fixtures / f"{name}_config.json"
    opened = open_model_files(folder, given=ModelOverrides(config=f"json::{config}"))
    write_lwm_original(opened, tmp_path / "new")
    ours, theirs = arrays_of(tmp_path / "new" / "params"), arrays_of(folder / "params")
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert ours[key].dtype == array.dtype
        np.testing.assert_array_equal(ours[key], array, err_msg=key)
    values = json.loads((tmp_path / "new" / "llama_config.json").read_text())
    given = json.loads(config.read_text())
    known = {key: value for key, value in given.items() if key in values}
    assert known | {"scan_layers": True} == {key: values[key] for key in known}
    assert {*given} - {*values} <= {
        "scan_attention", "scan_mlp", "scan_query_chunk_size", "scan_key_chunk_size",
        "scan_mlp_chunk_size", "sample_mode",
    }  # fmt: skip
    assert (tmp_path / "new" / "tokenizer.model").read_bytes() == (
        folder / "tokenizer.model"
    ).read_bytes()


def test_layers_are_apart_where_a_stack_is_too_large(fixtures, tmp_path, monkeypatch):
    (folder := tmp_path / "original").mkdir()
    shutil.copy(fixtures / "text_tiny_params_scan.msgpack", folder / "params")
    shutil.copy(fixtures / "tokenizer/tokenizer.model", folder)
    given = ModelOverrides(config=f"json::{fixtures / 'text_tiny_config.json'}")
    large = preset("7b")
    assert written._is_stacked(large, np.dtype("bfloat16"))
    assert not written._is_stacked(large, np.dtype("float32"))
    monkeypatch.setattr(written, "_is_stacked", lambda *_: False)
    write_lwm_original(open_model_files(folder, given=given), tmp_path / "new")
    theirs = fixtures / "text_tiny_params_noscan.msgpack"
    assert (tmp_path / "new" / "params").read_bytes() == theirs.read_bytes()
    assert not json.loads((tmp_path / "new" / "llama_config.json").read_text())["scan_layers"]
    assert open_model_files(tmp_path / "new").config.rope.theta == 10_000


def test_all_is_read_back_without_options(source, tmp_path):
    sampling = VisionSampling(image=FrameSampling(guidance=3.0))
    source = written.dataclasses.replace(source, sampling=sampling)
    noted = []
    write_lwm_original(source, tmp_path / "new", progress=lambda *done: noted.append(done))
    assert noted[-1][0] == noted[-1][1] > 2e6
    opened = open_model_files(tmp_path / "new")
    assert (opened.config, opened.sampling) == (source.config, sampling)
    assert open_tokens(tmp_path / "new")[1] == source.config.tokens
    for name in source.tensors:
        np.testing.assert_array_equal(opened.tensors[name], source.tensors[name], err_msg=name)
    assert opened.tokenizer.encode("<vision>a") == source.tokenizer.encode("<vision>a")
    assert opened.tokenizer.eos_ids == source.tokenizer.eos_ids
    assert opened.vqgan is not None
    assert source.vqgan is not None
    ours, theirs = read_vqgan(opened.vqgan), read_vqgan(source.vqgan)
    assert ours.config == theirs.config
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (tmp_path / "new" / "README.md").is_file()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_through_another_format_and_back(source, tmp_path, to):
    if to == "hf":
        convert_model(source, between := tmp_path / "between")
    else:
        write_gguf(source, between := tmp_path / "between.gguf")
    write_lwm_original(open_model_files(between), tmp_path / "back")
    ours, theirs = arrays_of(tmp_path / "back" / "params"), arrays_of(source.source)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    if to == "hf":
        found = read_pickle(tmp_path / "back" / "vqgan")
        wanted = read_pickle(source.source.with_name("vqgan"))
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_models_of_other_codebooks_and_tied_tables(mesh, tiny, init, byte_tokenizer, tmp_path):
    tokens = TokenSpace(text=260, vision=40, codes=32)
    config = tiny(tokens=tokens, head_dim=4, tie_embeddings=True, init_std=0.02)
    save_model(init(config), byte_tokenizer, tmp_path / "hf", dtype="bfloat16")
    source = open_model_files(tmp_path / "hf")
    write_lwm_original(source, tmp_path / "new")
    opened = open_model_files(tmp_path / "new")
    assert opened.config == config
    assert opened.tensors["transformer/wte/embedding"].dtype == "bfloat16"
    np.testing.assert_array_equal(
        opened.tensors["transformer/wte/embedding"], source.tensors["model.embed_tokens.weight"]
    )
    write_lwm_original(source, tmp_path / "wide", dtype="float32")
    assert LwmTensors(tmp_path / "wide" / "params")["transformer/ln_f/kernel"].dtype == np.float32


def test_the_pickle_asks_for_nothing_but_arrays_of_any_numpy(source, tmp_path):
    write_lwm_original(source, tmp_path / "new")
    data = (tmp_path / "new" / "vqgan").read_bytes()
    asked = {arg for code, arg, _ in pickletools.genops(data) if code.name == "GLOBAL"}
    assert asked == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert not [code for code, *_ in pickletools.genops(data) if code.name == "STACK_GLOBAL"]
    theirs = pickle.loads(source.source.with_name("vqgan").read_bytes())
    found = pickle.loads(data), read_pickle(tmp_path / "new" / "vqgan")
    for tree in found:
        assert jax.tree.structure(tree) == jax.tree.structure(theirs)
        for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(theirs), strict=True):
            assert one.dtype == np.float32
            np.testing.assert_array_equal(one, two)


OTHER = {
    "fewer key/value heads": {"num_kv_heads": 4},
    "of width / heads": {"head_dim": 16},
    "biases of queries": {"qkv_bias": True},
    "norms of queries": {"qk_norm": True},
    "RoPE scaling": {"rope": Rope(scaling=LinearScaling(factor=2.0))},
}


@pytest.mark.parametrize("part", OTHER)
def test_models_that_the_original_lacks_parts_of_are_refused(tiny, part):
    with pytest.raises(UserError, match=f"{part}.*; convert with --to hf or gguf"):
        written.require_expressible(tiny(**{"head_dim": 4} | OTHER[part]))


def test_places_and_faults(source, tmp_path, monkeypatch):
    def refusal(folder, error=UserError, **options):
        with pytest.raises(error) as caught:
            write_lwm_original(source, folder, **options)
        return str(caught.value)

    before = sorted(os.listdir(tmp_path))
    assert "holds the model itself" in refusal(source.source.parent, overwrite=True)
    write, full = written.write_stream, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error, kind, says in (
        (full, UserError, "no space for the model in"),
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt, "Ctrl-C"),
    ):

        def fail(path, arrays, error=error):
            write(path, [next(iter(arrays))])
            raise error

        monkeypatch.setattr(written, "write_stream", fail)
        assert says in refusal(tmp_path / "new", kind)
        assert sorted(os.listdir(tmp_path)) == before
    monkeypatch.setattr(written, "write_stream", write)
    write_lwm_original(source, tmp_path / "new")
    assert "give --overwrite to replace it" in refusal(tmp_path / "new")
    write_lwm_original(source, tmp_path / "new", overwrite=True)
    (tmp_path / "new" / "thesis.txt").touch()
    assert "holds thesis.txt that was not written here" in refusal(tmp_path / "new", overwrite=True)
