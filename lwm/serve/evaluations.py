"""`/v1/evaluations`: results of needle evaluations in a folder, and the prompts of their rows."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lwm.errors import UserError
from lwm.eval.ask import digest
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.prompts import Cell, Prompts
from lwm.eval.needle.texts import RoundTexts, Source
from lwm.eval.results import ResultRow, read_results
from lwm.files import parse_json
from lwm.generate.loaded import LoadedModel
from lwm.serve.errors import ApiError
from lwm.serve.sse import to_json

_RESULTS = "results.jsonl"
_SHOWN = ("needle", "visual-needle")
MOST_BYTES = 64 << 20
"""Bytes of a file of results, beyond which it is not shown."""
_MOST_FOLDERS = 10_000
"""Folders that are searched."""
_LONGEST = 1 << 22
"""Tokens of a prompt that is built again, at most."""
OWN = "-"
"""Id of results that lie in the folder itself: an address has no empty part."""


class Evaluations:
    """Needle results in a folder and those below it; its methods read files."""

    def __init__(self, folder: Path | None):
        """Takes the folder; None: there are no results."""
        self._folder = None if folder is None else folder.resolve()
        self._known: dict[Path, tuple[tuple[int, int], dict[str, Any] | None]] = {}
        """Entries of files, each with the time and the size for which it holds."""

    def entries(self) -> list[dict[str, Any]]:
        """Returns what there is, the latest first."""
        found = [entry for path in self._files() if (entry := self._entry(path)) is not None]
        return sorted(found, key=lambda entry: -entry["updated"])

    def results(self, name: str) -> bytes:
        """Returns header and rows of an evaluation, as JSON; a line that is being written is not.

        Raises:
            ApiError: There is none of this id, or its file is damaged.
        """
        header, rows = self._read(name)
        try:
            return to_json({"header": header, "rows": rows})
        except (ValueError, RecursionError):  # NaN, or nested too deeply
            raise _damaged(name) from None

    def prompt(self, name: str, row: int, model: LoadedModel) -> str:
        """Returns the prompt of a row, built again with the tokenizer and template of a model.

        Raises:
            ApiError: There is no such row, or its prompt was another one.
        """
        header, rows = self._read(name)
        if row >= len(rows):
            raise ApiError(
                f"{name} has {len(rows):,} rows so far, and no row {row:,}; they count from 0",
                "not_found_error",
                param="row",
            )
        if header["evaluation"] != "needle":
            raise ApiError(f"a prompt of {header['evaluation']} is no text", "not_found_error")
        try:
            built = _built(header, rows[row], model)
        except (UserError, AttributeError, KeyError, OverflowError, TypeError, ValueError):
            built = None
        if built is None:
            wanted = _name_of(header) or "that model"
            raise ApiError(
                f"the prompt was built for another model or haystack; serve {wanted} to see it",
                "not_found_error",
            )
        return built

    def _files(self) -> Iterator[Path]:
        """Yields files of results; links are not followed."""
        if self._folder is None:
            return
        for number, (folder, folders, files) in enumerate(os.walk(self._folder)):
            folders.sort()
            if number >= _MOST_FOLDERS:
                return
            path = Path(folder) / _RESULTS
            if _RESULTS in files and path.is_file() and not path.is_symlink():
                yield path

    def _entry(self, path: Path) -> dict[str, Any] | None:
        """Returns the entry of a file in the list; None if it has no results of needles."""
        try:
            stat = path.stat()
            state = stat.st_mtime_ns, stat.st_size
            if (known := self._known.get(path)) is None or known[0] != state:
                known = state, self._described(path, stat.st_size)
                self._known[path] = known
        except OSError:
            return None
        return None if known[1] is None else known[1] | {"updated": stat.st_mtime}

    def _described(self, path: Path, size: int) -> dict[str, Any] | None:
        if size > MOST_BYTES:
            return None
        first, _, rest = path.read_bytes().partition(b"\n")
        try:
            header = parse_json(first)
        except ValueError:
            return None
        if not isinstance(header, dict) or header.get("evaluation") not in _SHOWN:
            return None
        return {
            "id": self._id(path),
            "evaluation": header["evaluation"],
            "model": _name_of(header),
            "rows": rest.count(b"\n"),
            "expected": _expected(header),
        }

    def _id(self, path: Path) -> str:
        assert self._folder is not None
        name = path.parent.relative_to(self._folder).as_posix()
        return OWN if name == "." else name

    def _path(self, name: str) -> Path:
        """Returns the file of an id, which is in the folder.

        Raises:
            ApiError: There is none.
        """
        relative = PurePosixPath() if name == OWN else PurePosixPath(name)
        is_plain = not relative.is_absolute() and ".." not in relative.parts
        try:
            if self._folder is not None and is_plain:
                path = self._folder / relative / _RESULTS
                # A link on the way would lead elsewhere.
                is_own = path.resolve() == path and self._id(path) == name
                if is_own and path.is_file() and path.stat().st_size <= MOST_BYTES:
                    return path
        except (OSError, ValueError):  # too long, or with a zero byte
            pass
        raise ApiError(
            "there is no evaluation of this id; /v1/evaluations lists them", "not_found_error"
        )

    def _read(self, name: str) -> tuple[ResultRow, list[ResultRow]]:
        path = self._path(name)
        try:
            header, rows = read_results(path)
        except UserError:
            raise _damaged(name) from None
        if header["evaluation"] not in _SHOWN:
            raise _damaged(name)
        return header, rows


def _damaged(name: str) -> ApiError:
    return ApiError(f"{name} has no results of needles that can be read", "not_found_error")


def _name_of(header: Mapping[str, Any]) -> str:
    """Returns the name of the model of an evaluation."""
    model = header.get("model")
    return str(model.get("name", "")) if isinstance(model, dict) else ""


def _expected(header: Mapping[str, Any]) -> int | None:
    """Returns the number of rows at the end; None if the header does not say."""
    grid: Any = header.get("grid") or header.get("config")  # of earlier versions
    try:
        lengths = grid["lengths"] if "lengths" in grid else grid["frames"]
        return len(lengths) * len(grid.get("depths", "1")) * int(grid["rounds"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _built(header: Mapping[str, Any], row: ResultRow, model: LoadedModel) -> str | None:
    """Returns the prompt of a row; None if the model or the haystack is another one."""
    asked, source = header["config"], Source.open(None)
    length = int(row["context_length"])
    if header["haystack"]["sha256"] != source.sha256 or length > _LONGEST:
        return None
    needles, depth = int(asked["needles"]), row.get("depth_percent", 0.0)
    config = NeedleConfig(
        lengths=(length,),
        needles=needles,
        ask=int(asked["ask"]),
        seed=int(asked["seed"]),
        max_tokens=int(asked["max_tokens"]),
        prompt="lwm" if asked["prompt"] == "lwm" else "chat",
        repeat=True,  # whether it was is a matter of the length
    )
    texts = RoundTexts(source, model.tokenizer, longest=length)
    prompts = Prompts(config, model.tokenizer, template=model.template, texts=texts)
    cell = Cell(length=length, depth=None if needles > 1 else float(depth), round=int(row["seed"]))
    question = prompts.build(cell)
    return question.message if digest(question) == row["prompt_sha256"] else None
