"""Arrays that stay in their files until they are used."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from lwm.errors import UserError

_INFINITY = {
    np.dtype(np.float16): 0x7C00,
    np.dtype(ml_dtypes.bfloat16): 0x7F80,
    np.dtype(np.float32): 0x7F80_0000,
}
"""Bits of infinity; those of NaN are above, and those of all numbers below."""
_BLOCK = 1 << 20
"""Elements whose bits stay in a processor's cache from one pass to the next."""


class LazyArrays(Mapping):  # without parameters: run-time type checks would read values
    """Arrays by name, each read on access; their shapes are known without reading."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]
    ) -> None:
        """Takes the shapes by name, and the function that reads an array of this name."""
        self.shapes, self._read = shapes, read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes


def shapes_of(arrays: Mapping[str, np.ndarray]) -> Mapping[str, tuple[int, ...]]:
    """Returns the shapes of arrays, without reading those of `LazyArrays`."""
    if isinstance(arrays, LazyArrays):
        return arrays.shapes
    return {name: array.shape for name, array in arrays.items()}


def require_same_tensors(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    problem: str,
    hint: str = "",
) -> None:
    """Refuses tensors that do not fit a model.

    Args:
        found: Names and shapes in the files.
        wanted: Names and shapes of the model.
        problem: Start of the message.
        hint: End of the message.

    Raises:
        UserError: Tensors are missing, unexpected or of another shape; some are named.
    """
    of_each = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "misshapen": [
            f"{name} has {found[name]}, not {shape}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ],
    }
    faults = []
    for word, names in of_each.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            faults.append(f"{word}: {', '.join(sorted(names)[:3])}{more}")
    if faults:
        raise UserError(f"{problem}; {'; '.join(faults)}{hint}")


def require_finite(array: np.ndarray, name: str, path: Path) -> None:
    """Refuses a tensor that holds NaN or infinity, at little cost beside reading it.

    Args:
        array: The tensor.
        name: Its name in the file.
        path: The file.

    Raises:
        UserError: It does.
    """
    if not is_finite(array):
        raise UserError(
            f"{path} is corrupted: tensor {name!r} holds NaN or infinity; fetch the file again"
        )


def is_finite(array: np.ndarray) -> bool:
    """Returns whether an array holds neither NaN nor infinity."""
    return all(map(_is_finite, _blocks(array)))


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    if not array.flags.forc and array.ndim > 1:
        for part in array:
            yield from _blocks(part)
        return
    flat = array.ravel(order="K")
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def _is_finite(block: np.ndarray) -> bool:
    infinity = _INFINITY.get(block.dtype)
    if infinity is None:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(block.astype(np.float32)).all())
    # Two maxima over the bits, of either sign, are faster than `np.isfinite`, and need no memory.
    bits, sign = block.view(f"u{block.itemsize}"), 1 << (8 * block.itemsize - 1)
    largest = int(bits.view(f"i{block.itemsize}").max()), int(bits.max())
    return largest[0] < infinity and largest[1] < infinity + sign
