"""Pickles nested dicts of arrays as the original LWM reads them, with any NumPy since 1.0."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_PROTOCOL = 3
"""The first that holds bytes as they are, and the last that names functions in plain text."""
_RECONSTRUCT = np.empty(0).__reduce__()[0]


def write_pickle(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes dicts of arrays by name, and nothing else; `read_pickle` reads them, too."""
    with path.open("wb") as file:
        _Pickler(file, _PROTOCOL).dump(tree)


class _Pickler(pickle._Pickler):
    """Names NumPy's function by its module in NumPy 1, under which NumPy 2 has it as well."""

    write: Callable[[bytes], Any]
    memoize: Callable[[Any], None]

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is not _RECONSTRUCT:
            pickle._Pickler.save_global(self, obj, name)  # pyrefly: ignore[missing-attribute]
            return
        self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
        self.memoize(obj)
