"""Names of generated data sets: a kind, a part, and options, such as `recalls:train,count=2000`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lwm.errors import UserError

Part = TypeVar("Part", bound=str)


def read_name(
    name: str, kind: str, parts: Sequence[Part], options: Mapping[str, Callable[[str], Any]]
) -> tuple[Part, dict[str, Any]]:
    """Reads a name; returns its part and its options.

    Args:
        name: The name.
        kind: Its beginning, with the colon.
        parts: Those that there are.
        options: Readers of the values that may be given, by name.

    Raises:
        UserError: There is no such part or option, or a value cannot be read.
    """
    asked, *given = name.removeprefix(kind).split(",")
    part = next((each for each in parts if each == asked), None)
    if part is None:
        raise UserError(
            f"{name}: there is no {kind}{asked}; there are {' and '.join(kind + p for p in parts)}"
        )
    values: dict[str, Any] = {}
    for option in given:
        key, _, value = option.partition("=")
        if key not in options:
            raise UserError(f"{name}: there is no option {key!r}; there are {', '.join(options)}")
        if key in values:
            raise UserError(f"{name}: {key} is given twice")
        try:
            values[key] = options[key](value)
        except ValueError:
            wanted = "a whole number" if options[key] is int else "a number"
            raise UserError(f"{name}: {key} {value!r} is not {wanted}") from None
    return part, values
