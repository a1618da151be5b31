"""Models written as folders: read back exactly, by transformers too, and never half there."""

import collections
import dataclasses
import errno
import json
import os
import shutil
import stat

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from safetensors import SafetensorError

import lwm
from lwm.convert import folder as model_folder
from lwm.convert.export import save_model
from lwm.convert.folder import require_ours
from lwm.convert.open import open_model_files
from lwm.errors import UserError, is_full_disk
from lwm.formats.safetensor_files import open_safetensors
from lwm.model.config import LinearScaling, Rope, RopeScaling
from lwm.model.llama import Llama
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace
from lwm.vqgan.checkpoint import read_vqgan

LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64)
LINEAR = Rope(scaling=LinearScaling(factor=4.0))
VARIANTS = {
    "text": {},
    "tied": {"tie_embeddings": True, "num_kv_heads": 2, "rope": LINEAR},
    "qkv_bias": {"qkv_bias": True, "num_kv_heads": 4},
    "qk_norm": {"qk_norm": True, "head_dim": 16, "norm_eps": 1e-5},
    "llama3": {"rope": Rope(theta=500_000.0, scaling=LLAMA3)},
    "vision": {"tokens": TokenSpace(text=260, vision=40, codes=32)},
}
TYPES = {"qkv_bias": "qwen2", "qk_norm": "qwen3"}


@pytest.fixture
def make(tiny):
    """Draws an unstacked model under the mesh in use in which no bias is 0 and no norm 1."""

    def draw(**changes):
        config = tiny(**{"tokens": TokenSpace(text=258), "init_std": 0.02} | changes)
        shapes = jax.eval_shape(lambda: Llama.init(config, key=jax.random.key(0)).unstack())
        rng = np.random.default_rng(0)

        def fill(leaf):
            values = 0.2 * rng.standard_normal(leaf.shape, np.float32) + (leaf.ndim == 1)
            return jax.device_put(
                values, NamedSharding(jax.sharding.get_mesh(), leaf.sharding.spec)
            )

        return jax.tree.map(fill, shapes)

    return draw


@pytest.fixture(scope="module")
def forward():
    return jax.jit(lambda model, tokens, packing: model(tokens, packing))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_loaded(mesh, make, place, forward, byte_tokenizer, tmp_path, variant):
    model = make(**VARIANTS[variant])
    save_model(model, byte_tokenizer, tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    assert values["model_type"] == TYPES.get(variant, "llama")
    assert ("lwm" in values) == (variant == "vision")
    assert values["vocab_size"] == model.config.tokens.size

    found = lwm.load(tmp_path / "model")
    assert found.llama.config == model.config
    assert found.tokenizer.eos_ids == byte_tokenizer.eos_ids
    placed = place(mesh, np.random.default_rng(0).integers(0, 258, (2, 100)))
    wanted = np.asarray(forward(model, *placed))
    np.testing.assert_array_equal(np.asarray(forward(found.llama, *placed)), wanted)


@pytest.mark.torch
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_reads_the_same_model(
    mesh, make, place, forward, byte_tokenizer, tmp_path, variant
):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = make(**VARIANTS[variant])
    save_model(model, byte_tokenizer, tmp_path / "model", max_shard_bytes=60_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert theirs.dtype == torch.float32
    assert set(theirs.generation_config.eos_token_id) == byte_tokenizer.eos_ids
    space, size = model.config.tokens, model.config.tokens.size
    assert (theirs.generation_config.suppress_tokens or []) == [*range(space.text, size)]
    tokens = np.random.default_rng(0).integers(0, size, (2, 100))
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    logits = np.asarray(forward(model, *place(mesh, tokens)))[..., :size]
    assert wanted.shape == logits.shape
    assert np.abs(logits - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("search", ["nearest", "product"])
def test_the_vqgan_is_for_diffusers_where_these_can_have_it(
    mesh, make, byte_tokenizer, tmp_path, search
):
    shipped = read_vqgan("vqgan-64")
    config = dataclasses.replace(shipped.config, search=search)
    vqgan = dataclasses.replace(shipped, config=config)
    for name, dtype in (("model", None), ("half", "bfloat16")):
        folder = tmp_path / name
        save_model(make(**VARIANTS["vision"]), byte_tokenizer, folder, vqgan=vqgan, dtype=dtype)
        beside = folder / "vqvae" if search == "nearest" else folder
        assert open_model_files(folder).vqgan == beside
        assert (folder / "vqgan.json").exists() == (search == "product")
        found = read_vqgan(beside)
        assert found.config == config
        for leaf, again in zip(jax.tree.leaves(shipped), jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(np.asarray(leaf, dtype), again)


@pytest.mark.parametrize("mesh_text", ["1,2,2,1", "1,2,1,4"])
def test_files_do_not_depend_on_mesh_or_stacking(tiny, init, byte_tokenizer, tmp_path, mesh_text):
    config = tiny(tokens=TokenSpace(text=258, vision=34, codes=32))
    with jax.set_mesh(make_mesh()):
        save_model(init(config), byte_tokenizer, tmp_path / "one")
    with jax.set_mesh(make_mesh(mesh_text)):
        model = init(config)
    save_model(model, byte_tokenizer, tmp_path / "many")
    with jax.set_mesh(make_mesh(mesh_text)):
        apart = model.unstack()
    save_model(apart, byte_tokenizer, tmp_path / "apart")
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert contents(tmp_path / "one") == contents(tmp_path / "apart")


def test_shards(mesh, make, byte_tokenizer, tmp_path):
    model = make()
    save_model(model, byte_tokenizer, tmp_path / "one")
    save_model(model, byte_tokenizer, tmp_path / "many", max_shard_bytes=20_000)
    one, many = (open_safetensors(tmp_path / name) for name in ("one", "many"))
    assert set(one) == set(many)
    for name, array in one.items():
        np.testing.assert_array_equal(many[name], array)

    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in one.values())
    held = collections.defaultdict(list)
    for name, file in index["weight_map"].items():
        held[file].append(one[name].nbytes)
    assert len(held) > 5
    assert all(sum(sizes) <= 20_000 or len(sizes) == 1 for sizes in held.values())
    assert sorted(held)[0] == f"model-00001-of-{len(held):05}.safetensors"


def test_bfloat16(mesh, make, byte_tokenizer, tmp_path):
    model = make()
    save_model(model, byte_tokenizer, tmp_path / "whole")
    save_model(model, byte_tokenizer, tmp_path / "half", dtype="bfloat16")
    save_model(
        lwm.load(tmp_path / "whole", dtype="bfloat16").llama, byte_tokenizer, tmp_path / "loaded"
    )
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert contents(tmp_path / "half") == contents(tmp_path / "loaded")
    half = open_safetensors(tmp_path / "half")
    for name, array in open_safetensors(tmp_path / "whole").items():
        assert half[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(half[name], array.astype(ml_dtypes.bfloat16))


def test_card_and_rights(mesh, make, byte_tokenizer, tmp_path):
    save_model(make(), byte_tokenizer, tmp_path / "a" / "model", card="# Mine\n")
    folder = tmp_path / "a" / "model"
    assert (folder / "README.md").read_text() == "# Mine\n"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1, "who may read one file may read all"
    save_model(make(), byte_tokenizer, tmp_path / "b")
    assert not (tmp_path / "b" / "README.md").exists()


def test_a_model_of_ours_is_replaced_and_nothing_else(mesh, make, byte_tokenizer, tmp_path):
    folder = tmp_path / "model"

    def refused(place, match):
        """Says no before the model is made, as afterwards."""
        with pytest.raises(UserError, match=match):
            require_ours(place)
        with pytest.raises(UserError, match=match):
            save_model(model, byte_tokenizer, place)

    require_ours(folder)
    folder.mkdir()
    require_ours(folder)
    model = make()
    save_model(model, byte_tokenizer, folder, max_shard_bytes=20_000)
    require_ours(folder)
    save_model(model, byte_tokenizer, folder)
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "model.safetensors.index.json").exists()
    before = contents(folder)

    (folder / "notes.txt").touch()
    refused(folder, r"model holds notes\.txt that was not written here")
    (folder / "notes.txt").unlink()
    refused(folder / "config.json", r"config\.json is a file")
    assert contents(folder) == before

    values = json.loads(before["config.json"]) | {"transformers_version": "5"}
    for text in (json.dumps(values), "{}", "not JSON"):  # as others write it over ours
        (folder / "config.json").write_text(text)
        refused(folder, "holds a model that was not written here")
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_that_cannot_be(mesh, make, byte_tokenizer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"file/model cannot be written \(.*File exists: .*/file'\)"
    ):
        save_model(make(), byte_tokenizer, tmp_path / "file" / "model")


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_full_disk(mesh, make, byte_tokenizer, tmp_path, monkeypatch, moment):
    model = make()
    save_model(model, byte_tokenizer, tmp_path / "model")
    before = contents(tmp_path / "model")

    def full(*_):
        raise SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")

    if moment == "before":
        usage = collections.namedtuple("usage", "total used free")  # as shutil returns it
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 100_000))
    else:
        monkeypatch.setattr(model_folder, "save_file", full)
    with pytest.raises(UserError, match=r"no space for the model in .*model: it needs .* GB and"):
        save_model(model, byte_tokenizer, tmp_path / "model")
    assert contents(tmp_path / "model") == before
    assert os.listdir(tmp_path) == ["model"]


def test_a_full_disk_is_known_by_its_words():
    full = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert is_full_disk(full)
    assert is_full_disk(ValueError(f"RESOURCE_EXHAUSTED: {os.strerror(errno.ENOSPC)}"))
    above = RuntimeError("the write failed")
    assert not is_full_disk(above)
    above.__cause__ = full
    assert is_full_disk(above)
    above.__cause__, above.__context__ = None, full
    assert is_full_disk(above)
    assert not is_full_disk(OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert not is_full_disk(None)


def test_what_a_killed_process_left_is_cleared(mesh, make, byte_tokenizer, tmp_path):
    left = tmp_path / ".model.partial"
    left.mkdir()
    (left / "model-00001-of-00002.safetensors").touch()
    save_model(make(), byte_tokenizer, tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 1


def test_models_that_cannot_be_saved(mesh, make, byte_tokenizer, tmp_path):
    with pytest.raises(UserError, match="both qkv_bias and qk_norm"):
        save_model(make(qkv_bias=True, qk_norm=True), byte_tokenizer, tmp_path / "x")
    with pytest.raises(UserError, match="tokenizer has 258 tokens but the model only 250"):
        save_model(make(tokens=TokenSpace(text=250)), byte_tokenizer, tmp_path / "x")
    save_model(make(), byte_tokenizer, tmp_path / "model")
    small = lwm.load(tmp_path / "model", dtype="int8").llama
    with pytest.raises(UserError, match="weights of few bits cannot be saved"):
        save_model(small, byte_tokenizer, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_eight_bits_are_read_from_what_was_saved(mesh, make, byte_tokenizer, tmp_path):
    model = make(tokens=TokenSpace(text=258, vision=34, codes=32))
    save_model(model, byte_tokenizer, tmp_path / "model")
    small = lwm.load(tmp_path / "model", dtype="int8").llama
    assert small.head is not None
    assert model.head is not None
    error = np.abs(np.asarray(small.head.astype(np.float32)) - model.head)[:, : 258 + 34].max()
    assert 0 < error < np.abs(model.head).max() / 127
    assert small.config == model.config
    assert small.compute == model.compute
