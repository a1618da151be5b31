"""Fingerprints: the same for copies, others for other content, at any size."""

import os
from pathlib import Path

import pytest

import lwm.fingerprint
from lwm.errors import UserError
from lwm.fingerprint import fingerprint, fingerprints, model_files, named, require_same
from lwm.train.inputs import INPUTS, keep_inputs


@pytest.fixture
def small_limits(monkeypatch):
    """As if 1 GB were 100 bytes, and 16 GB 250."""
    for name, value in {"WHOLE": 100, "TOGETHER": 250, "_BLOCK": 2, "_BLOCKS": 3}.items():
        monkeypatch.setattr(lwm.fingerprint, name, value)


def later(path):
    time = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(time, time))


def test_small_files_are_known_by_their_content_alone(tmp_path):
    file = tmp_path / "a"
    file.write_text("abc")
    before = fingerprint(file)
    later(file)
    assert fingerprint(file) == before
    time = file.stat().st_mtime_ns
    file.write_text("abd")
    os.utime(file, ns=(time, time))
    assert fingerprint(file) != before


@pytest.mark.parametrize("place", [0, 50, 100, 149, 199])
def test_both_ends_and_spread_blocks_of_large_files_are_read(tmp_path, small_limits, place):
    file = tmp_path / "a"
    content = bytearray(200)
    file.write_bytes(content)
    before, time = fingerprint(file), file.stat().st_mtime_ns
    content[place] = 1
    file.write_bytes(content)
    os.utime(file, ns=(time, time))
    assert fingerprint(file) != before


def test_a_large_file_with_another_time_is_another_file(tmp_path, small_limits):
    file = tmp_path / "a"
    file.write_bytes(bytes(101))
    before = fingerprints({"a": file})
    require_same(before, fingerprints({"a": file}), "restore it")
    later(file)
    with pytest.raises(
        UserError, match=r"^a has another time of modification, and is too large .*"
    ):
        require_same(before, fingerprints({"a": file}), "restore it")


def test_of_a_large_set_the_files_are_not_read(tmp_path, small_limits, monkeypatch):
    files: dict[str, Path] = {}
    for name in "abc":
        files[name] = tmp_path / name
        files[name].write_bytes(bytes(90))
    monkeypatch.setattr(lwm.fingerprint, "content_of", None)
    before = fingerprints(files)
    require_same(before, fingerprints(files), "")
    later(files["b"])
    with pytest.raises(UserError, match=r"^b has another time"):
        require_same(before, fingerprints(files), "")


def test_files_that_come_and_go_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    paths = named([tmp_path / "a" / "x.txt", tmp_path / "b" / "x.txt"])
    assert list(paths) == ["x.txt", "x.txt (2)"]
    found = fingerprints(paths)
    one = {"x.txt": found["x.txt"]}
    with pytest.raises(UserError, match=r"^x\.txt \(2\) is new since the start; do this$"):
        require_same(one, found, "do this")
    with pytest.raises(UserError, match=r"^x\.txt \(2\) is not there any more"):
        require_same(found, one, "")
    paths["x.txt"].unlink()
    with pytest.raises(UserError, match=r"/a/x\.txt is not there any more"):
        require_same(found, fingerprints(paths), "", paths=paths)
    require_same({}, found, "")


def test_the_files_of_a_model(tmp_path):
    names = ["config.json", "model.safetensors", "tokenizer.json", "README.md", "._config.json"]
    for name in [*names, "a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "params", "b.gguf"]:
        (tmp_path / name).touch()
    (tmp_path / "onnx").mkdir()
    found = [file.name for file in model_files(tmp_path)]
    assert found[-4:] == ["config.json", "model.safetensors", "params", "tokenizer.json"]
    assert not {"README.md", "._config.json", "onnx"}.intersection(found)
    (tmp_path / "vqvae").mkdir()
    for name in ("config.json", ".DS_Store"):
        (tmp_path / "vqvae" / name).touch()
    assert model_files(tmp_path)[-1] == tmp_path / "vqvae" / "config.json"
    assert [file.name for file in model_files(tmp_path)[:-1]] == found
    split = model_files(tmp_path / "a-00001-of-00002.gguf")
    assert [file.name[:9] for file in split] == ["a-00001-o", "a-00002-o"]
    assert model_files(tmp_path / "b.gguf") == [tmp_path / "b.gguf"]
    beside = [file.name for file in model_files(tmp_path / "params")]
    assert beside == ["config.json", "params", "tokenizer.json"]


def test_inputs_of_a_run_are_kept_and_those_of_earlier_versions_are_added(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    keep_inputs({"data/a.txt": file}, tmp_path, resumed=True)
    keep_inputs({"data/a.txt": file}, tmp_path, resumed=True)
    file.write_text("two")
    with pytest.raises(UserError, match=r"/a\.txt has changed since the start; .*inputs\.json if"):
        keep_inputs({"data/a.txt": file}, tmp_path, resumed=True)
    keep_inputs({"data/a.txt": file}, tmp_path, resumed=False)
    keep_inputs({"data/a.txt": file}, tmp_path, resumed=True)
    for content in ("{", '{"version": 1}'):
        (tmp_path / INPUTS).write_text(content)
        with pytest.raises(UserError, match=r"inputs\.json"):
            keep_inputs({"data/a.txt": file}, tmp_path, resumed=True)
