"""The catalogue of models: names, places, and what is said when one is not there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lwm.errors import UserError
from lwm.folders import cache_folder
from lwm.hub import fetch
from lwm.hub.catalog import MODELS, find_model, locate, resolve, resolve_tokenizer

SMOL = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own, and no network by accident."""
    monkeypatch.setenv("LWM_CACHE", str(tmp_path / "lwm"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace both ways of fetching by a record of what was asked for."""
    asked: list[str] = []

    def from_hub(repo: str, files: tuple[str, ...], *, licence: str = "", progress: bool) -> Path:
        asked.append(repo)
        return Path("fetched")

    def from_wheel(wheel: object, target: Path, *, progress: bool) -> Path:
        asked.append(str(target))
        return target

    monkeypatch.setattr(fetch, "from_hub", from_hub)
    monkeypatch.setattr(fetch, "from_wheel", from_wheel)
    return asked


def snapshot(cache: Path, repo: str) -> Path:
    """Make an empty snapshot in the hub's cache."""
    folder = cache / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    return folder / "snapshots" / "abc"


def test_names_are_unique_and_found_in_any_case():
    names = [entry.name for entry in MODELS]
    assert len({name.lower() for name in names}) == len(names) == 13
    for entry in MODELS:
        assert find_model(entry.name.upper()) is entry
        assert all(
            find_model(repo) is find_model(repo.split("/")[1]) is entry for repo in entry.repos
        )


@pytest.mark.parametrize(
    ("name", "context", "theta", "modality"),
    [
        ("LWM-Text-128K", 2**17, 1e7, "text"),
        ("LWM-Text-Chat-128K", 2**17, 1e7, "text"),
        ("LWM-Text-Chat-256K", 2**18, 1e7, "text"),
        ("LWM-Text-512K", 2**19, 2.5e7, "text"),
        ("LWM-Text-1M", 2**20, 5e7, "text"),
        ("LWM-Chat-32K", 2**15, 5e7, "text, image, video"),
        ("LWM-Chat-1M", 2**20, 5e7, "text, image, video"),
    ],
)
def test_facts(name: str, context: int, theta: float, modality: str):
    entry = find_model(name)
    assert (entry.context, entry.theta, entry.modality) == (context, theta, modality)
    assert entry.licence == "Llama 2 Community License"
    assert ("vqgan" in entry.files) == (modality != "text")


def test_unknown_names_get_a_hint():
    with pytest.raises(UserError, match="did you mean LWM-Text-1M"):
        find_model("LWM-Txt-1M")
    with pytest.raises(UserError, match="`lwm models` lists"):
        find_model("zzz")


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert cache_folder() == tmp_path / "lwm"
    monkeypatch.delenv("LWM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "lwm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lwm"


def test_a_file_of_the_wrong_size_does_not_count(cache: Path, offline: list[str]):
    entry = find_model(SMOL)
    assert entry.wheel
    assert locate(entry) is None
    file = cache / "lwm" / SMOL / entry.wheel.file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    assert locate(entry) is None
    assert resolve(SMOL) == file, "it is fetched again"
    assert offline == [str(file)]
    with file.open("r+b") as sparse:
        sparse.truncate(entry.wheel.size)
    assert locate(entry) == resolve(SMOL.upper()) == file
    assert len(offline) == 1


@pytest.mark.parametrize("place", ["own", "hub"])
def test_lwm_models_are_located_when_whole(cache: Path, place: str, offline: list[str]):
    entry = find_model("LWM-Chat-1M")
    folder = cache / "lwm" / entry.name if place == "own" else snapshot(cache, entry.repos[0])
    folder.mkdir(parents=True, exist_ok=True)
    for file in entry.files:
        assert locate(entry) is None
        (folder / file).touch()
    assert locate(entry) == folder
    assert resolve("LargeWorldModel/LWM-Chat-1M-Jax") == folder
    assert offline == []


def test_safetensors_are_located_when_whole(cache: Path, offline: list[str]):
    folder = snapshot(cache, "LargeWorldModel/LWM-Text-1M")
    (folder / "config.json").touch()
    assert locate(find_model("LWM-Text-1M")) is None
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    (folder / "model-1.safetensors").touch()
    assert locate(find_model("LWM-Text-1M")) is None
    (folder / "model-2.safetensors").touch()
    assert locate(find_model("LWM-Text-1M")) == folder
    index.write_text("{")
    assert locate(find_model("LWM-Text-1M")) is None
    other = snapshot(cache, "org/name")
    (other / "config.json").touch()
    (other / "model.safetensors").touch()
    assert resolve("org/name") == other
    assert offline == []


def test_resolve_goes_by_kind_of_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: list[str]
):
    assert resolve(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert resolve("mine") == Path("mine")
    resolve("some-org/some.model")
    resolve("lwm-text-chat-1m")
    assert offline == ["some-org/some.model", "LargeWorldModel/LWM-Text-Chat-1M-Jax"]
    for absent in ("./absent", "/absent/model", "absent.gguf", "a/b/c"):
        with pytest.raises(UserError, match="does not exist"):
            resolve(absent)
    with pytest.raises(UserError, match="did you mean smollm2"):
        resolve("smollm2")
    assert len(offline) == 2


def test_import_is_light():
    code = (
        "import sys, lwm.hub.catalog; "
        "sys.exit(any(m in sys.modules for m in ('jax', 'numpy', 'huggingface_hub', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_tokenizer_is_fetched_without_weights(
    cache: Path, monkeypatch: pytest.MonkeyPatch, offline: list[str]
):
    files = ["tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"]
    files += ["chat_template.jinja", "onnx/tokenizer.json", "README.md"]
    asked: list[tuple[str, list[str]]] = []

    def download(repo: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo, sorted(allow_patterns)))
        folder = snapshot(cache, repo)
        for name in allow_patterns:
            (folder / name).touch()
        return str(folder)

    monkeypatch.setattr(fetch, "_listing", lambda repo: dict.fromkeys(files, 1))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    folder = resolve_tokenizer("org/name")
    assert asked == [("org/name", sorted([files[0], files[1], files[2], files[4]]))]
    assert resolve_tokenizer("org/name") == folder, "it is in the cache now"
    assert resolve_tokenizer("LWM-Text-1M") == cache / "hub" / (
        "models--LargeWorldModel--LWM-Text-1M-Jax/snapshots/abc"
    )
    assert len(asked) == 2
    assert resolve_tokenizer(cache) == cache
    with pytest.raises(UserError, match="did you mean smollm2"):
        resolve_tokenizer("smollm2")
    files[:] = ["config.json", "model.safetensors"]
    with pytest.raises(UserError, match="org/other has no tokenizer; give a local"):
        resolve_tokenizer("org/other")
    assert offline == [], "no weights"
