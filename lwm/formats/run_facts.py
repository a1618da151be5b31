"""Facts of a training run for its model's card: settings, data, tokens, scores, earlier stages."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import parse_json, read_json, read_versioned, replacing, write_versioned
from lwm.formats.run_folder import SETTINGS, WITH_MODEL

LINEAGE, LOG, INPUTS = "lineage.json", "log.jsonl", "inputs.json"
_VERSION = 1
_UNREADABLE = (
    UserError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
)
# Sets that come with the package, or that it fetches.
_LICENCES = {
    "shipped:moby-dick": "public domain",
    "shipped:clips": "MIT",
    "world:": "Apache-2.0",
    "books:": "public domain",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Licence:
    """Licence of some weights."""

    name: str
    identifier: str | None = None
    """As the hub lists it, such as `apache-2.0`."""
    link: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Root:
    """The model of others at the start of a lineage."""

    name: str
    repo: str | None = None
    """Its hub repository."""
    licence: Licence | None = None
    """None if it is not known."""
    base: tuple[str, ...] = ()
    """Hub repositories that it is based on, as its own card says."""
    languages: tuple[str, ...] = ()
    """Languages of its texts, as its own card says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One training in a lineage."""

    name: str
    steps: int
    tokens: int | None = None
    """Tokens of its rows, without padding; None if the log does not say."""
    length: int | None = None
    """Tokens of a row."""
    theta: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lineage:
    """Origin of some weights: a model of others or random numbers, and trainings in order."""

    root: Root | None = None
    """None if the first training began from random numbers."""
    stages: tuple[Stage, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetFacts:
    """A set that was trained on."""

    name: str
    files: tuple[str, ...]
    weight: float
    format: str | None
    """The setting `format` of its records, if it is not detected."""
    num_files: int
    num_bytes: int
    """Both are 0 if they were not recorded."""
    endings: tuple[str, ...]

    @property
    def licence(self) -> str | None:
        """The licence, if all files are of one set whose licence is known."""
        found = {
            next((name for start, name in _LICENCES.items() if file.startswith(start)), None)
            for file in self.files
        }
        return found.pop() if len(found) == 1 else None

    @property
    def repos(self) -> list[str]:
        """Data sets of the hub among the files."""
        matches = [re.match(r"hf:([\w.-]+/[\w.-]+)", file) for file in self.files]
        return [match[1] for match in matches if match]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A training run up to one of its steps."""

    name: str
    step: int
    steps: int
    """Steps of the whole run."""
    seen: int | None
    """Tokens without padding, or frames; None if the log lacks a step."""
    rows: int
    """Rows or frames of a batch."""
    accumulate: int
    length: int | None
    """Tokens of a row; None for frames."""
    theta: float | None
    dtype: str | None
    """Type of activations."""
    seed: int
    optimizer: Mapping[str, Any]
    loss: Mapping[str, Any]
    """Weights of the parts of the loss."""
    sets: tuple[SetFacts, ...]
    scored_at: int
    """Step of the last validation, 0 without one."""
    scores: Mapping[str, Mapping[str, Any]]
    """Scores of that validation by held-out set."""
    lineage: Lineage | None
    """Lineage of the first weights; None if it was not recorded."""
    init: str | None

    @property
    def stage(self) -> Stage:
        """This run as a stage of a lineage."""
        return Stage(
            name=self.name,
            steps=self.step,
            tokens=None if self.length is None else self.seen,
            length=self.length,
            theta=self.theta,
        )


def read_run_facts(run: Path, step: int | None = None) -> RunFacts | None:
    """Reads what a run's folder says of the model at a step.

    Args:
        run: The folder.
        step: The step; None for the last.

    Returns:
        The facts; None if the run is of an earlier version, or its settings are damaged.
    """
    try:
        return _read(run, step)
    except _UNREADABLE:
        return None


def write_lineage(lineage: Lineage, run: Path) -> None:
    """Records the lineage of the first weights of a run, for its card and those of later stages.

    Raises:
        UserError: The folder cannot be written.
    """
    with replacing(run / LINEAGE) as partial:
        write_versioned(dataclasses.asdict(lineage), partial, _VERSION)


def read_lineage(run: Path) -> Lineage | None:
    """Returns what `write_lineage` recorded; None if there is nothing, or it is damaged."""
    try:
        values = read_versioned(run / LINEAGE, _VERSION)
        root = values["root"]
        if root is not None:
            licence = root["licence"] and Licence(**root["licence"])
            lists = {name: tuple(map(str, root[name])) for name in ("base", "languages")}
            root = Root(**root | lists | {"licence": licence})
        return Lineage(root=root, stages=tuple(Stage(**each) for each in values["stages"]))
    except _UNREADABLE:
        return None


def _read(run: Path, step: int | None) -> RunFacts | None:
    values = read_json(run / SETTINGS)
    if int(values.get("version", 1)) < WITH_MODEL:
        return None
    data, training = values["data"], values["training"]
    is_text = "packing" in data
    has_vision = is_text and bool(values["model"]["tokens"]["vision"])
    steps = int(training["steps"])
    step = steps if step is None else step
    seen, scored_at, scores = _read_log(run / LOG, step, "tokens" if is_text else "frames")
    return RunFacts(
        name=run.resolve().name,
        step=step,
        steps=steps,
        seen=seen,
        rows=int(data["rows" if is_text else "batch"]),
        accumulate=int(training["accumulate"]),
        length=int(data["packing"]["length"]) if is_text else None,
        theta=float(values["model"]["rope"]["theta"]) if is_text else None,
        dtype=str(values["compute"]["dtype"]) if is_text else None,
        seed=int(values["seed"]),
        optimizer=dict(training["optimizer"]),
        # Weights of modalities have no effect where there is one.
        loss=training["loss"] if has_vision or not is_text else {},
        sets=tuple(_sets(data["sets"], _recorded(run))),
        scored_at=scored_at,
        scores=scores,
        lineage=read_lineage(run),
        init=None if values["init"] is None else str(values["init"]),
    )


def _read_log(
    path: Path, step: int, unit: str
) -> tuple[int | None, int, Mapping[str, Mapping[str, Any]]]:
    """Returns the tokens or frames of all steps, and step and scores of the last validation."""
    seen, done, scored_at, scores = 0, 0, 0, {}
    for line in _lines(path):
        number = int(line["step"])
        if number > step:
            break
        if "held_out" in line:
            scored_at, scores = number, dict(line["held_out"])
        else:
            seen, done = seen + int(line[unit]), done + 1
    return (seen if done == step else None), scored_at, scores


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _recorded(run: Path) -> Mapping[str, str]:
    """Returns the fingerprints of the run's inputs by their names."""
    try:
        return dict(parse_json((run / INPUTS).read_text(encoding="utf-8"))["files"])
    except _UNREADABLE:
        return {}


def _sets(values: Any, recorded: Mapping[str, str]) -> Iterator[SetFacts]:
    for number, one in enumerate(values):
        start = f"data.sets.{number}/"
        found = {name: text for name, text in recorded.items() if name.startswith(start)}
        sizes = [re.match(r"(\d+) bytes", text) for text in found.values()]
        kind = one.get("format", {}).get("format", "auto")
        yield SetFacts(
            name=str(one["name"]),
            files=tuple(map(str, one["files"])),
            weight=float(one["weight"]),
            format=None if kind == "auto" else str(kind),
            num_files=len(found),
            num_bytes=sum(int(size[1]) for size in sizes if size),
            endings=tuple(sorted({Path(name).suffix.split(" ")[0] for name in found} - {""})),
        )
