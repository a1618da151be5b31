"""Folders in which programs keep what they may need again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Returns the folder of all programs' caches: `$XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()


def cache_folder() -> Path:
    """Returns the folder of what is fetched and compiled: `$LWM_CACHE`, else one in the cache."""
    if own := os.environ.get("LWM_CACHE"):
        return Path(own).expanduser()
    return user_cache() / "lwm"
