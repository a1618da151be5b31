"""Models open by name, file and folder, in the form in which LWM published them too."""

import dataclasses
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

import lwm
from lwm.convert import open as opening
from lwm.convert.export import save_model
from lwm.convert.names import LWM_NAMES, dimensions
from lwm.convert.open import open_model_files, open_tokenizer, open_tokens, read_llama
from lwm.devices import Machine
from lwm.errors import UserError
from lwm.files import read_json
from lwm.formats.flax_file import FlaxFile
from lwm.formats.flax_writer import write_stream
from lwm.hub import catalog
from lwm.model.config import ModelOverrides, Rope, preset
from lwm.sharding import make_mesh
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace
from lwm.vqgan.checkpoint import read_vqgan, to_flax


def test_a_published_folder_opens(published):
    folder, config, given = published
    for name in (folder, folder / "params", f"params::{folder / 'params'}"):
        opened = open_model_files(name, given=given)
        assert opened.config == config
        assert opened.source == folder / "params"
    model = lwm.load(folder, given=dataclasses.replace(given, context=256))
    assert model.context == 256
    assert model.vqgan_file is not None
    assert read_vqgan(model.vqgan_file).config.codes == 8192
    assert isinstance(model.chat("Hello", max_tokens=4), str)


def test_it_is_trained_from_there(published, tmp_path):
    folder, _, given = published
    opened = open_model_files(folder, given=given)
    model = read_llama(opened, opened.training_config(), mesh=make_mesh("1,2,2,2"))
    one = lwm.load(folder, given=given).llama
    np.testing.assert_array_equal(model.embedding, one.embedding)
    np.testing.assert_array_equal(model.head, one.head)


def test_a_vqgan_of_another_model_is_refused_at_once(published, draw_vqgan, tmp_path):
    folder, _, given = published
    other = draw_vqgan(codes=16)
    with pytest.raises(UserError, match="has 16 codes, but the model 8192: they are of different"):
        lwm.load(folder, given=given, vqgan=other)
    with pytest.raises(UserError, match="none does not exist"):
        lwm.load(folder, given=given, vqgan=tmp_path / "none")
    # Beside the model, it is refused unless another is given.
    (folder / "vqgan").write_bytes(pickle.dumps(to_flax(read_vqgan(other))))
    with pytest.raises(UserError, match="vqgan has 16 codes, but the model 8192"):
        lwm.load(folder, given=given)
    assert lwm.load(folder, given=given, vqgan=draw_vqgan(codes=8192)).sees


def test_a_vqgan_for_a_text_model_is_refused(tiny, init, byte_tokenizer, vqgan, tmp_path):
    config = tiny(tokens=TokenSpace(text=byte_tokenizer.vocab_size))
    with jax.set_mesh(make_mesh()):
        save_model(init(config), byte_tokenizer, tmp_path / "text")
    with pytest.raises(UserError, match="the model reads and writes text only, but"):
        lwm.load(tmp_path / "text", vqgan=vqgan)


def test_what_belongs_to_others_is_refused(published, tmp_path, byte_tokenizer):
    folder, _, given = published
    with pytest.raises(UserError, match="how many heads is not known; give --config"):
        open_model_files(folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="other holds no model: neither config"):
        open_model_files(tmp_path / "other")
    with pytest.raises(UserError, match=r"none is no file; give that of LWM's .* after params::"):
        open_model_files("params::/none")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer in"):
        open_model_files(folder, given=given)


def test_tokens_of_lwms_own_folder_need_no_options(published):
    """As `lwm data check --model` opens it, with a `config.json` from the hub or without."""
    folder, config, _ = published
    for _ in range(2):
        tokenizer, tokens = open_tokens(folder)
        assert tokens == config.tokens
        assert tokenizer.vocab_size == tokens.text
        for name in (folder, folder / "params", f"params::{folder / 'params'}"):
            assert open_tokenizer(name).vocab_size == tokens.text
        (folder / "config.json").write_text('{"model_type": "lwm"}')


def test_metadata_of_a_run_is_read_beside_its_train_state(published):
    folder, config, given = published
    values = read_json(Path(given.config.removeprefix("json::")))
    before = folder / "params"
    for name, metadata in (
        ("streaming_params_7", "metadata_7.pkl"),
        ("streaming_train_state_7", "metadata_7.pkl"),
        ("streaming_train_state", "metadata.pkl"),
    ):
        before = before.rename(folder / name)
        (folder / metadata).write_bytes(pickle.dumps({"llama_config": values}))
        assert open_model_files(folder / name).config == config
        (folder / metadata).unlink()
        with pytest.raises(UserError, match="how many heads is not known"):
            open_model_files(folder / name)
    assert open_model_files(folder, given=given).config == config


def test_a_codebook_of_another_size_is_that_of_the_vqgan_beside(published, draw_vqgan):
    folder, config, given = published
    weights = to_flax(read_vqgan(draw_vqgan(codes=16)))
    (folder / "vqgan").write_bytes(pickle.dumps(weights))
    arrays = {}
    for name, stored in FlaxFile(folder / "params").arrays.items():
        arrays[name] = np.zeros([18 if size == 8448 else size for size in stored.shape], "float16")
    write_stream(folder / "params", arrays.items())
    opened = open_model_files(folder, given=given)
    assert opened.config.tokens == TokenSpace(text=config.tokens.text, vision=18, codes=16)
    assert open_tokens(folder)[1] == opened.config.tokens
    (folder / "vqgan").unlink()
    with pytest.raises(
        UserError, match=r"18 vision ids, not those of LWM's 8192 codes; .* --codes"
    ):
        open_model_files(folder, given=given)
    opened = open_model_files(folder, given=dataclasses.replace(given, codes=12))
    assert opened.config.tokens.codes == 12
    with pytest.raises(UserError, match="18 vision ids, too few for 17 codes and two marks"):
        open_model_files(folder, given=dataclasses.replace(given, codes=17))
    with pytest.raises(UserError, match="has a token space of its own; leave out --codes"):
        open_model_files("tiny-vision", given=ModelOverrides(codes=64))


def test_names_are_known_by_their_folders(tmp_path):
    """All that was released, in the hub's cache or fetched by hand."""
    released = [entry for entry in catalog.MODELS if entry.name.startswith("LWM-")]
    assert len(released) == 11
    for entry in released:
        for repo in entry.repos:
            in_cache = (
                tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / "1a2b" / "params"
            )
            assert opening._entry(in_cache, in_cache) == entry
            plain = tmp_path / repo.split("/")[1] / "params"
            assert opening._entry(plain, plain) == entry
            above = tmp_path / repo.split("/")[1] / "runs" / "my-own" / "params"
            assert opening._entry(above, above) is None


def test_a_released_model_in_the_hubs_cache_opens_by_name(tmp_path, monkeypatch, byte_tokenizer):
    """Its name says theta and context; a size of LWM's own stands for that of the 7B."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    hub = tmp_path / "hub" / "models--LargeWorldModel--LWM-Text-512K-Jax"
    folder = hub / "snapshots" / "1a2b"
    folder.mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("1a2b")
    sizes = dimensions(preset("debug"))
    arrays = {
        layout.name.replace("*", "scan_decoder"): np.broadcast_to(
            np.float16(0),
            ((2,) if "*" in layout.name else ()) + layout.shape(sizes),
        )
        for path, layout in LWM_NAMES.items()
        if "vision" not in path
    }
    write_stream(folder / "params", arrays.items())
    byte_tokenizer.save(folder)
    (folder / "tokenizer.model").touch()  # what makes it complete
    opened = open_model_files("LWM-Text-512K")
    assert opened.config == preset("debug", rope=Rope(theta=2.5e7), max_context=512 * 1024)
    assert opened.known == catalog.find_model("lwm-text-512k")


def test_marks_of_vision_are_those_trained_with(fixtures, tiny):
    tokenizer = Tokenizer.open(fixtures / "tokenizer")
    tokens = TokenSpace(text=32_000, vision=8448, codes=8192)
    opened = opening.ModelFiles(
        config=tiny(tokens=tokens),
        tensors={},
        table=opening.TABLE,
        tokenizer=tokenizer,
        source=fixtures / "tokenizer",
    )
    with pytest.raises(UserError, match=r"<vision> as .* trained with \[529, 4924, 29958\]; give"):
        opening._require_vocabulary(opened)


def test_a_model_that_cannot_fit_is_refused_before_it_is_read(published, monkeypatch):
    folder, _, given = published
    small = Machine(count=8, memory=2_000_000, platform="gpu")
    monkeypatch.setattr("lwm.loading.machine", lambda: small)
    monkeypatch.setattr("lwm.loading.build_llama", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"GB a device for 512 tokens in float32 .* the device has"):
        lwm.load(folder, given=dataclasses.replace(given, context=512))


def test_a_snapshot_without_its_index_may_lack_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name, is_complete in (
        ("vqgan.safetensors", False),
        ("own.safetensors", True),
        ("own-00001-of-00030.safetensors", False),
        ("model.safetensors", True),
    ):
        (tmp_path / name).touch()
        assert catalog._is_complete(tmp_path, ()) == is_complete, name


def test_a_snapshot_of_an_adapter_is_complete_with_its_factors(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not catalog._is_complete(tmp_path, ())
    (tmp_path / "adapter_model.safetensors").touch()
    assert catalog._is_complete(tmp_path, ())


def test_a_stale_index_does_not_make_a_snapshot_incomplete(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    assert not catalog._is_complete(tmp_path, ())
    (tmp_path / "model.safetensors").touch()
    assert catalog._is_complete(tmp_path, ())


def test_names_too_long_to_be_a_file():
    with pytest.raises(UserError, match="no model is called 'aaa"):
        opening.find_files("a" * 5000)
    with pytest.raises(UserError, match="is no file; give that of LWM's parameters"):
        opening.find_files("params::" + "a" * 5000)


@pytest.mark.parametrize(
    "index", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 9999]
)
def test_a_snapshot_with_a_damaged_index_is_not_complete(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert not catalog._is_complete(tmp_path, ())
