"""Arrays that stay in their files until they are used."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lwm.errors import UserError


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
