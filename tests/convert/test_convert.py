"""What `lwm convert` writes is the same model, and goes on where it was interrupted."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import lwm
from lwm.convert import folder as model_folder
from lwm.convert.convert import convert_model
from lwm.convert.open import open_model_files
from lwm.errors import UserError
from lwm.files import PARTIAL
from lwm.vqgan.checkpoint import read_vqgan

FORMER_CARD = """---
library_name: lwm
---
# LWM-Chat-Small-Jax

Reads and writes text, images and video; a context of 512 tokens.

| | |
|---|---|
| layers, width, heads | 2, 32, 8 |
| text ids, vision ids | 258, 8,448 |
| RoPE theta | 5e+07 |
| weights | float32 |
| converted from | LWM-Chat-Small-Jax |
| licence | that of the model it was converted from |

```sh
lwm chat FOLDER
```
"""
"""As earlier versions wrote it."""


@pytest.fixture
def source(published):
    folder, _, given = published
    return open_model_files(folder, given=given)


def leaves(path, **options):
    return jax.tree.leaves(jax.device_get(lwm.load(path, **options).llama))


def test_the_model_is_the_same(published, source, tmp_path):
    folder, config, given = published
    told = []
    convert_model(source, tmp_path / "new", progress=lambda *done: told.append(done))
    assert told[-1][0] == told[-1][1] > 2e6
    for one, two in zip(
        leaves(folder, given=given), leaves(tmp_path / "new", mesh="1,2,2,2"), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    opened = open_model_files(tmp_path / "new")
    assert opened.config == config
    assert opened.tokenizer.encode("<vision>") == source.tokenizer.encode("<vision>")
    assert opened.vqgan is not None
    assert opened.vqgan == tmp_path / "new" / "vqvae"
    theirs, ours = read_vqgan(folder / "vqgan"), read_vqgan(opened.vqgan)
    assert ours.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    card = (tmp_path / "new" / "README.md").read_text()
    assert "# LWM-Chat-Small-Jax" in card
    assert "| end of vision | 8,451 |" in card
    assert "Read from the file params." in card
    defaults = json.loads((tmp_path / "new" / "generation_config.json").read_text())["lwm"]
    assert defaults["image"]["guidance"] == 5.0


def test_files_type_and_licence(source, tmp_path):
    (source.source.parent / "LICENSE.txt").write_text("as you like")
    convert_model(source, tmp_path / "new", dtype="bfloat16", max_shard_bytes=300_000)
    shards = sorted((tmp_path / "new").glob("model-*.safetensors"))
    assert len(shards) == 3
    assert shards[0].stat().st_mode & 0o444 == 0o444
    assert (tmp_path / "new" / "LICENSE.txt").read_text() == "as you like"
    exact = [np.asarray(leaf, "float32") for leaf in leaves(tmp_path / "new")]
    wide = open_model_files(tmp_path / "new").tensors["model.norm.weight"]
    assert wide.dtype == "bfloat16"
    assert all(np.isfinite(leaf).all() for leaf in exact)


def test_an_interrupted_run_is_gone_on_with(source, tmp_path, monkeypatch):
    save, written = model_folder.save_file, []

    def counted(tensors, path, *rest):
        if len(written) == 2:
            (path.parent / ".tmpA1b2C3").write_bytes(b"as the library leaves it when killed")
            raise KeyboardInterrupt
        written.append(path.name)
        save(tensors, path, *rest)

    monkeypatch.setattr(model_folder, "save_file", counted)
    with pytest.raises(KeyboardInterrupt):
        convert_model(source, tmp_path / "new", max_shard_bytes=300_000)
    assert not (tmp_path / "new").exists()
    written[:] = []
    with pytest.raises(KeyboardInterrupt):
        convert_model(source, tmp_path / "new", max_shard_bytes=200_000)  # other files: anew
    first = list(written)
    written[:] = []
    convert_model(source, tmp_path / "new", max_shard_bytes=200_000)
    assert len(first) == 2
    assert not {*first} & {*written}
    assert {path.name for path in (tmp_path / "new").glob("model-*")} == {
        name.removeprefix(PARTIAL).rpartition("-")[0] for name in [*first, *written]
    }
    assert sorted(os.listdir(tmp_path)) == ["LWM-Chat-Small-Jax", "config.json", "new"]
    assert not [name for name in os.listdir(tmp_path / "new") if name.startswith(".")]
    for one, two in zip(
        leaves(tmp_path / "new"),
        jax.tree.leaves(jax.device_get(lwm.load(tmp_path / "new").llama)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


@pytest.fixture
def other(published, tmp_path):
    """A model of the same shape and other weights, in a folder of the same name."""
    folder, _, given = published
    shutil.copytree(folder, tmp_path / "other" / folder.name)
    params = tmp_path / "other" / folder.name / "params"
    data = bytearray(params.read_bytes())
    data[-4] ^= 1  # of the last number
    params.write_bytes(data)
    return open_model_files(params.parent, given=given)


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_another_finished_model_is_replaced_only_when_asked(source, other, tmp_path):
    convert_model(source, tmp_path / "new")
    before = contents(tmp_path / "new")
    holds = r"new holds 'LWM-Chat-Small-Jax' and its README\.md, .*give --overwrite"
    with pytest.raises(UserError, match=holds):
        convert_model(other, tmp_path / "new")
    assert contents(tmp_path / "new") == before
    convert_model(other, tmp_path / "new", overwrite=True)
    assert contents(tmp_path / "new")["model.safetensors"] != before["model.safetensors"]
    with pytest.raises(UserError, match=holds):
        convert_model(source, tmp_path / "new")


def test_the_same_model_again_is_refused_only_where_its_card_was_changed(source, tmp_path):
    convert_model(source, tmp_path / "new")
    before = contents(tmp_path / "new")
    convert_model(source, tmp_path / "new")
    assert contents(tmp_path / "new") == before
    (tmp_path / "new" / "README.md").write_text("# Mine\n\nTook me a day.\n")
    with pytest.raises(UserError, match=r"new holds 'Mine' and its README\.md"):
        convert_model(source, tmp_path / "new", dtype="bfloat16")
    convert_model(source, tmp_path / "new", overwrite=True)
    assert contents(tmp_path / "new") == before
    for name in ("notes.txt", "vqvae/notes.txt"):
        (tmp_path / "new" / name).touch()
        with pytest.raises(UserError, match=rf"holds {name} that was not written here"):
            convert_model(source, tmp_path / "new", overwrite=True)
        (tmp_path / "new" / name).unlink()


def test_folders_of_an_earlier_version_are_known_by_their_cards(source, tmp_path):
    convert_model(source, tmp_path / "new")
    file = tmp_path / "new" / "config.json"
    values = json.loads(file.read_text())
    del values["converted_from"]
    file.write_text(json.dumps(values))
    # Of a trained model, whose card is ours as well.
    with pytest.raises(UserError, match="new holds 'LWM-Chat-Small-Jax' and its README"):
        convert_model(source, tmp_path / "new")
    (tmp_path / "new" / "README.md").write_text(FORMER_CARD)
    convert_model(source, tmp_path / "new")
    assert "converted_from" in json.loads(file.read_text())
    file.write_text(json.dumps(values))
    (tmp_path / "new" / "README.md").unlink()  # as of a model that was trained
    with pytest.raises(UserError, match="new holds a llama model, which would be lost"):
        convert_model(source, tmp_path / "new")


def test_two_at_once_do_not_mix(source, tmp_path, monkeypatch):
    save, refused = model_folder.save_file, []

    def interrupted(*arguments):
        if not refused:
            with pytest.raises(UserError, match="new is being written by another process; wait"):
                convert_model(source, tmp_path / "new", dtype="bfloat16")
            refused.append(True)
        save(*arguments)

    monkeypatch.setattr(model_folder, "save_file", interrupted)
    convert_model(source, tmp_path / "new", max_shard_bytes=300_000)
    assert refused
    assert len(list((tmp_path / "new").glob("model-*.safetensors"))) == 3
    assert sorted(os.listdir(tmp_path)) == ["LWM-Chat-Small-Jax", "config.json", "new"]
    convert_model(source, tmp_path / "new", dtype="bfloat16")  # free again


def test_a_damaged_vqgan_is_told_of_before_the_weights_are_read(source, tmp_path, monkeypatch):
    (source.source.parent / "vqgan").write_bytes(b"\x80\x04")
    monkeypatch.setattr(model_folder, "save_file", lambda *_: pytest.fail("weights were written"))
    with pytest.raises(UserError, match="vqgan is cut off at byte 2"):
        convert_model(source, tmp_path / "new")


def test_licences_of_any_name_can_be_replaced(source, tmp_path):
    (source.source.parent / "LICENSE-MODEL-2.0.txt").write_text("as you like")
    for _ in range(2):
        convert_model(source, tmp_path / "new")
    assert (tmp_path / "new" / "LICENSE-MODEL-2.0.txt").is_file()


def test_where_it_cannot_be_written(source, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds the model itself; choose another folder"):
        convert_model(source, source.source.parent)
    with pytest.raises(UserError, match="/ is no place for a model; choose another folder"):
        convert_model(source, Path("/"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"holds thesis.txt that was not written here"):
        convert_model(source, tmp_path / "full")
    usage = model_folder.shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(model_folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"no space for the model in .*/new: it needs .* GB and"):
        convert_model(source, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["LWM-Chat-Small-Jax", "config.json", "full"]
