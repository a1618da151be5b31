"""A VQGAN in a file: its configuration, and arrays that are read on access, by the file's names."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from lwm.errors import UserError
from lwm.vqgan.config import VQGANConfig


class StoredArray(NamedTuple):
    """An array in our layout: a kernel is height, width, inputs, outputs."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @classmethod
    def of_torch(cls, stored: "StoredArray") -> "StoredArray":
        """Returns the array of a PyTorch file, whose kernels are outputs, inputs, height, width."""
        if len(stored.shape) != 4:
            return stored
        outputs, inputs, height, width = stored.shape
        return cls((height, width, inputs, outputs), lambda: to_ours(stored.read()))


class StoredVQGAN(NamedTuple):
    """The contents of a file of any format."""

    config: VQGANConfig
    arrays: dict[str, StoredArray]
    """By names of the file."""
    file: Path
    """The file of the arrays, for messages."""
    name_of: Callable[[str], str] = lambda path: path
    """Returns the file's name of a weight such as `decoder.levels.0.resample.kernel`."""


def to_ours(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel of PyTorch in our layout."""
    return kernel.transpose(2, 3, 1, 0)


def to_torch(kernel: np.ndarray) -> np.ndarray:
    """Inverts `to_ours`."""
    return kernel.transpose(3, 2, 0, 1)


def names_of(
    modules: Mapping[str, str], parts: Mapping[str, str], arrays: Mapping[str, str]
) -> dict[str, str]:
    """Returns a table of our names to those of a format, from tables of their pieces.

    Args:
        modules: Names of modules; a `*` is a number.
        parts: Names of the parts of a residual block; "" for modules that are none.
        arrays: Names of arrays.
    """
    return {
        module + part + array: their_module + their_part + their_array
        for module, their_module in modules.items()
        for part, their_part in parts.items()
        for array, their_array in arrays.items()
    }


def name_in(names: Mapping[str, str], path: str) -> str:
    """Returns the name in a table of a weight such as `decoder.levels.0.resample.kernel`."""
    number = r"(?<=\.)\d+(?=\.)"
    numbers = iter(re.findall(number, path))
    return re.sub(r"\*", lambda _: next(numbers), names[re.sub(number, "*", path)])


def open_safetensors(path: Path) -> dict[str, StoredArray]:
    """Returns the arrays of a file, none of which is read yet.

    Raises:
        UserError: The file is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; save the VQGAN again")
    try:
        with safe_open(path, "numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None

    def read(name: str) -> np.ndarray:
        with safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    return {name: StoredArray(shape, lambda n=name: read(n)) for name, shape in shapes.items()}
