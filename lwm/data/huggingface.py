"""Data sets of Hugging Face's optional library `datasets`: saved in a folder, or by name.

hf:org/name                 the split `train`
hf:org/name:validation
hf:org/name/config:train
"""

import json
import re
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import reading, reason_of, require_package
from lwm.hub.fetch import finish_within

HUB = "hf:"
_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<config>[^/:]+))?(:(?P<split>[^:]+))?")
_SECONDS = 4.0


def is_saved(folder: Path) -> bool:
    """Returns whether `save_to_disk` wrote a folder."""
    one = all((folder / name).is_file() for name in ("state.json", "dataset_info.json"))
    return one or (folder / "dataset_dict.json").is_file()


def load_saved(folder: Path) -> Any:
    """Loads a folder that `save_to_disk` wrote.

    Raises:
        UserError: It is damaged, or holds several splits; these are named.
    """
    several = folder / "dataset_dict.json"
    if several.is_file():
        with reading(several):
            splits = json.loads(several.read_text(encoding="utf-8"))["splits"]
            raise UserError(
                f"{folder} holds the splits {', '.join(splits)}; give {folder / splits[0]}"
            )
    library = _library()
    with reading(folder):
        return library.load_from_disk(str(folder))


def load_hub(name: str) -> Any:
    """Loads a data set of the hub through the library's own cache.

    Raises:
        UserError: The name is malformed, or the data set cannot be fetched.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise UserError(
            f"{name!r} is not the name of a data set; write hf:org/name or hf:org/name/config:split"
        )
    repo, config, split = parts["repo"], parts["config"], parts["split"] or "train"
    library = _library()
    is_offline = library.config.HF_HUB_OFFLINE
    if not is_offline:
        _reach(repo, name)
    try:
        return library.load_dataset(repo, config, split=split)
    except ConnectionError:
        if not is_offline:
            raise UserError(f"fetching {name} was cut short; run again to go on") from None
        raise UserError(
            f"{name} is not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it"
        ) from None
    except Exception as error:  # the library raises what it likes
        raise UserError(f"{name} cannot be loaded: {reason_of(error)}") from None


def _library() -> Any:
    return require_package("datasets", "a Hugging Face data set", "hf")


def _reach(repo: str, name: str) -> None:
    """Checks within seconds that the hub has a data set; the library itself retries for long."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        finish_within(_SECONDS, lambda: HfApi().dataset_info(repo, timeout=_SECONDS))
    except RepositoryNotFoundError:
        raise UserError(
            f"the hub has no data set {repo}, or it is private: check the name, or log in with `hf`"
        ) from None
    except Exception as error:
        raise UserError(
            f"{name}: the hub cannot be reached ({type(error).__name__}); give a folder that "
            "save_to_disk wrote, or set HF_HUB_OFFLINE=1 to use what is in its cache"
        ) from None
