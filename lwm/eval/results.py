"""A JSONL file of results that survives a kill: each line is either complete or absent."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import json_line, parse_json, reading, write_bytes, writing

ResultRow = Mapping[str, Any]


class Results:
    """Results so far, in a JSONL file; its first line is a header that describes the evaluation.

    The header's `grid` may differ from that of the file, which then grows: lists become their
    union, of numbers the largest is kept. Everything else must be the same.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]):
        """Opens the file or starts it; an incomplete last line is dropped.

        Raises:
            UserError: It belongs to another evaluation, is damaged, or cannot be written.
        """
        self.path = path
        self.header: dict[str, Any] = json.loads(json.dumps(header))
        with writing(path):
            data = path.read_bytes() if path.exists() else b""
        first = json_line(self.header)
        if first.startswith(data):
            self.rows: list[dict[str, Any]] = []
            with writing(path):
                path.write_bytes(first)
            return
        whole = data[: data.rfind(b"\n") + 1]
        there, *self.rows = _parse(whole or data, path)
        if isinstance(there.get("grid"), dict) and isinstance(self.header.get("grid"), dict):
            grown = _union(there["grid"], self.header["grid"])
            there, self.header = there | {"grid": grown}, self.header | {"grid": grown}
            first = json_line(self.header)
        _require_same(there, self.header, path)
        if not data.startswith(first):  # it has grown, or an earlier version recorded less
            write_bytes(path, first + whole.partition(b"\n")[2])
        elif len(whole) < len(data):
            with writing(path):
                os.truncate(path, len(whole))

    def append(self, row: ResultRow) -> None:
        """Appends a row, and returns when it is on the disk."""
        with writing(self.path), self.path.open("ab") as file:
            file.write(json_line(row))
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(json.loads(json_line(row)))


def score_of(row: ResultRow) -> float:
    """Returns the score of a result, also of one of an earlier version."""
    return float(row["score"] if "score" in row else row["correct"])


def read_header(path: Path) -> ResultRow | None:
    """Returns the header of a file of results; None if there is none yet.

    Raises:
        UserError: It is no header.
    """
    first, newline, _ = path.read_bytes().partition(b"\n") if path.exists() else (b"", b"", b"")
    return _parse(first, path)[0] if newline else None


def read_results(path: Path) -> tuple[ResultRow, list[ResultRow]]:
    """Returns header and rows of a file of results, which is not changed.

    Raises:
        UserError: It cannot be read, is damaged, or has no header yet.
    """
    with reading(path):
        data = path.read_bytes()
    lines: list[ResultRow] = [*_parse(data[: data.rfind(b"\n") + 1], path)]
    if not lines or "evaluation" not in lines[0]:
        raise UserError(f"{path} has no results of an evaluation yet")
    return lines[0], lines[1:]


def require_same(path: Path, part: ResultRow) -> None:
    """Refuses a file of results whose header differs in some fields.

    Raises:
        UserError: The first field that differs.
    """
    if (there := read_header(path)) is not None:
        known = {key: value for key, value in there.items() if key in part}
        _require_same(known, json.loads(json_line(part)), path)


def _parse(data: bytes, path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: not the results of an evaluation; choose another folder"
            )
        rows.append(row)
    return rows


def _union(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Joins two grids: lists, which are kept in order, and numbers."""
    joined: dict[str, Any] = dict(there)
    for name, new in here.items():
        old = there.get(name, new)
        is_list = isinstance(new, list)
        joined[name] = sorted({*old, *new}) if is_list else max(old, new)
    return joined


def _require_same(there: ResultRow, here: ResultRow, path: Path) -> None:
    if there.get("evaluation") != here.get("evaluation"):
        found: str | None = "its first line differs"
    else:
        found = difference(there, here)
    if found:
        raise UserError(
            f"{path} belongs to another evaluation ({found}); "
            "choose another folder, or remove this one to start anew"
        )


def difference(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> str | None:
    """Names the first field in which two headers differ; those that are not `there` are new."""
    for key, old in there.items():
        new = here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if found := difference(old, new, f"{prefix}{key}."):
                return found
        elif old != new:
            return f"{prefix}{key} was {json.dumps(old)}, is {json.dumps(new)}"
    return None
