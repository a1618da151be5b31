"""Row groups of Parquet files, in memory of a size that the file's own makes likely."""

import io
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import reading, require_package
from lwm.limits import limit

_VARIABLE = "LWM_MAX_ROW_GROUP"
_BYTES = 1 << 30
_RATIO = 16
_TABLE_BYTES = 1 << 28
_ROWS = 1 << 8


def read_group(path: Path, metadata: Any, number: int) -> Any:
    """Reads a row group as an Arrow table; values that the file holds once are kept once.

    Raises:
        UserError: It would need much more memory than its size in the file makes likely.
    """
    parquet = require_package("pyarrow.parquet", "Parquet")
    group = metadata.row_group(number)
    columns = [group.column(i) for i in range(group.num_columns)]
    need = sum(map(_num_bytes, columns))
    allowed = limit(_VARIABLE, _BYTES)
    if need > max(allowed, _RATIO * sum(each.total_compressed_size for each in columns)):
        raise UserError(
            f"{path}: row group {number + 1} needs {need:,} bytes, more than {allowed:,} and "
            f"{_RATIO} times its size in the file; write smaller ones, or raise {_VARIABLE}"
        )
    once = [each.path_in_schema for each in columns if _may_expand(each, allowed)]
    with parquet.ParquetFile(path, metadata=metadata, read_dictionary=once) as file:
        return file.read_row_group(number)


def read_rows(name: str, content: bytes) -> list[dict[str, Any]]:
    """Reads the rows of a small file.

    Raises:
        UserError: It is damaged, or its rows are not small.
    """
    parquet = require_package("pyarrow.parquet", "Parquet")
    rows, size, most = [], 0, limit(_VARIABLE, _TABLE_BYTES)
    with reading(name), parquet.ParquetFile(io.BytesIO(content)) as file:
        for batch in file.iter_batches(_ROWS):
            size += batch.nbytes
            if size > most:
                raise UserError(
                    f"{name}: its rows have more than {most:,} bytes; raise {_VARIABLE}"
                )
            rows += batch.to_pylist()
    return rows


def _may_expand(column: Any, allowed: int) -> bool:
    """Returns whether all values may be as long as all that the column holds."""
    is_shared = _is_bytes(column) and column.has_dictionary_page
    return is_shared and column.num_values * column.total_uncompressed_size > allowed


def _is_bytes(column: Any) -> bool:
    return column.physical_type == "BYTE_ARRAY"


def _num_bytes(column: Any) -> int:
    """Returns the bytes that a column needs in memory, without its repetitions of long values."""
    if _is_bytes(column):
        return 4 * column.num_values + column.total_uncompressed_size
    return 8 * column.num_values
