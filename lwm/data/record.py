"""One record of any source: a JSON object, or a row of a table."""

from typing import Any, NamedTuple


class Record(NamedTuple):
    """One JSON object."""

    value: dict[str, Any]
    name: str
    """File and line, from 1, for messages."""
    line: int
    """The line in its file, from 0; blank lines count."""


def row_of(table: Any, index: int) -> dict[str, Any]:
    """Returns a row of an Arrow table, its lists of whole numbers as arrays."""
    return {
        name: _plain(column[index])
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _plain(scalar: Any) -> Any:
    import pyarrow

    if isinstance(scalar, pyarrow.ListScalar) and scalar.is_valid:
        items, types = scalar.values, pyarrow.types
        if not items.null_count and (types.is_integer(items.type) or types.is_boolean(items.type)):
            return items.to_numpy(zero_copy_only=False)
    return scalar.as_py()
