"""Training loop: batches go through a task, numbers into a log, states into checkpoints."""

import contextlib
import dataclasses
import json
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from lwm.data.loader import COUNTED, Delivered, require_few_bad
from lwm.errors import UserError
from lwm.files import reading, writing
from lwm.formats.run_folder import CHECKPOINTS, steps_of
from lwm.model.config import LlamaConfig
from lwm.processes import agree_on, all_or_none, gather
from lwm.signals import StopRequest, stop_requests
from lwm.train.checkpoint import Checkpointable, Checkpoints, abstract_state, newest_of
from lwm.train.config import LoopConfig
from lwm.train.data_warnings import DataWarnings

MOST_BAD = 3
"""Non-finite updates in a row after which a run ends."""

LogLine = dict[str, Any]
"""One line of the log."""

_STOPPING = "lwm: stopping: the update ends, a checkpoint is saved; Ctrl-C again ends at once"
_PROFILED_AFTER = 2
"""Updates before a profile begins; the first compiles."""
_MOST_NAMED = 20


class Stopped(Exception):
    """Raised when a signal stopped the run after a checkpoint was saved."""

    def __init__(self, step: int, by: int):
        """Names the last step and the signal."""
        super().__init__(f"stopped after step {step}; run the same again to go on")
        self.by = by


@runtime_checkable
class LogSink(Protocol):
    """Receives the log of a run."""

    def begin(self, last: int) -> None:
        """Receives the last step of the checkpoint that the run resumes from, 0 without one."""

    def __call__(self, line: LogLine) -> None:
        """Receives each line of the log, in process 0."""

    def busy(self, text: str) -> None:
        """Receives what goes on between updates, such as a validation."""

    def warn(self, text: str) -> None:
        """Receives warnings: examples left out, damaged checkpoints."""


@runtime_checkable
class Batches(Protocol):
    """An endless stream of training batches."""

    max_bad_share: float

    def __iter__(self) -> Generator[Delivered]: ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the batch with which `state` was delivered."""

    def merge(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Combines the states of each process into one."""
        ...


@runtime_checkable
class Task(Protocol):
    """A model with its data and its update; the loop calls all methods under the mesh.

    It stands beside the loop, its one caller, which thus imports no model.
    """

    @property
    def batches(self) -> Batches:
        """Training batches, from their beginning."""
        ...

    def abstract(self) -> Any:
        """Makes a state; only its shapes and types are used."""

    def start(self) -> Any:
        """Makes the first state."""

    def update(self, state: Any, batches: list[Delivered]) -> tuple[Any, LogLine]:
        """Returns the state after one more update, the old one consumed, and its line of the log.

        A line has at least `loss` and `finite`. If this is false, the update was skipped.
        """
        ...

    def measure(self, state: Any, number: int) -> dict[str, Any]:
        """Returns the scores on each held-out set after update `number`, for the log."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenTask:
    """A task with all that a run needs around it."""

    task: Task
    units: str
    """Number of ids or codes of the model, in words."""
    save: Callable[[Any, Path], None]
    """Saves the model of a state to a folder; called by all processes."""
    model: LlamaConfig | None = None
    """The model, if it is a language model."""
    inputs: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """The files that the result depends on, by name."""


def train(
    config: LoopConfig, task: Task, mesh: Mesh, folder: Path, *, sink: LogSink, profile: int = 0
) -> Any:
    """Trains, from the newest checkpoint in `folder` if there is one; returns the last state.

    Args:
        config: Number of steps, checkpoints and validations.
        task: The model and its data.
        mesh: The devices.
        folder: Gets `checkpoints` and `log.jsonl`: a line for each update and each validation.
        sink: Receives the lines of the log and warnings.
        profile: Number of updates to trace into the folder `profile`.

    Raises:
        Stopped: SIGTERM, SIGHUP or Ctrl-C came; the same run goes on from here.
        UserError: The data or the disk failed, or three updates in a row were not finite; earlier
            checkpoints are whole.
    """
    batches = task.batches
    with (
        stop_requests(_STOPPING, signal.SIGTERM, signal.SIGHUP, signal.SIGINT) as request,
        jax.set_mesh(mesh),
        Checkpoints(folder / CHECKPOINTS, config.keep, sink.warn) as checkpoints,
        contextlib.closing(iter(batches)) as delivered,
    ):
        start, state = _first_state(task, checkpoints, mesh)
        with all_or_none():
            sink.begin(start)
            log = Log(folder / "log.jsonl", start, sink)
        warnings = DataWarnings(sink.warn)
        traced = profiled(start, config.steps, profile)
        with contextlib.ExitStack() as trace:
            for number in range(start + 1, config.steps + 1):
                begun = time.perf_counter()
                given, read, stop = fetch(delivered, config.accumulate, request)
                warnings.report(given)
                require_few_bad(read, batches.max_bad_share)
                if traced and number == traced[0]:
                    trace.enter_context(jax.profiler.trace(str(folder / "profile")))
                state, line = task.update(state, given)
                if traced and number == traced[-1]:
                    trace.close()
                line = {"step": number} | line | {"memory": memory()}
                line |= {f"examples_{what}": count for what, count in read.items()}
                if not line["finite"]:
                    line["examples"] = names(given)
                log.write(line | {"seconds": time.perf_counter() - begun})
                require_finite(state, number, folder)
                if validation_is_due(config, number):
                    sink.busy("validating")
                    if scores := task.measure(state, number):
                        log.write({"step": number, "held_out": scores})
                if number == config.steps or stop or config.keep.due(number):
                    sink.busy("saving a checkpoint")
                    states = gather(given[-1].state())
                    checkpoints.save(number, state, batches.merge(states))
                if stop and number < config.steps:
                    checkpoints.wait()
                    raise Stopped(number, stop)
    return state


def _first_state(task: Task, checkpoints: Checkpoints, mesh: Mesh) -> tuple[int, Any]:
    """Returns the step and state to start from; restores the batches to that step."""
    found = checkpoints.restore(abstract_state(task.abstract, mesh))
    if found is None:
        return 0, task.start()
    start, state, data = found
    task.batches.restore(data)
    return start, state


def fetch(
    batches: Iterator[Delivered], count: int, request: StopRequest
) -> tuple[list[Delivered], dict[str, int], int]:
    """Returns batches, counts of examples read by all processes, and a stop signal or 0.

    Raises:
        UserError: This process or another one cannot read its data.
    """
    given, failure, counts = [], None, [0] * len(COUNTED)
    try:
        given = [next(batches) for _ in range(count)]
        counts = list(given[-1].read.values())
    except Exception as error:
        failure = error
    signals, *counts = zip(*agree_on(failure, [request.signal, *counts]), strict=True)
    read = dict(zip(given[-1].read, map(sum, counts), strict=True))
    return given, read, max(signals)


def validation_is_due(config: LoopConfig, number: int) -> bool:
    """Returns whether a validation follows update `number`."""
    every = config.validate_every
    return number == config.steps or bool(every and number % every == 0)


def names(given: list[Delivered]) -> list[str]:
    """Returns the names of the examples of batches on all processes, at most the first few."""
    own = [name for one in given for row in one.examples for name in row]
    found = list(dict.fromkeys(name for part in gather(own) for name in part))
    more = [f"and {len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []
    return found[:_MOST_NAMED] + more


def memory() -> int:
    """Returns the peak bytes in use: on the fullest local device, or, where devices do not report
    it, in this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(found.get("peak_bytes_in_use", 0) for found in stats)
    unit = 1 if sys.platform == "darwin" else 1024
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def require_finite(state: Checkpointable, number: int, folder: Path) -> None:
    """Ends a run that has diverged.

    Raises:
        UserError: `MOST_BAD` updates in a row were not finite.
    """
    if int(state.bad) >= MOST_BAD:
        raise UserError(
            f"the updates of steps {number - MOST_BAD + 1} to {number} are not finite; in {folder} "
            f"{newest_of(steps_of(folder))}. The log names the examples: remove them, or lower the "
            "learning rate, and start again in another folder"
        )


def profiled(start: int, end: int, count: int) -> range:
    """Returns the updates to trace in a run from `start` to `end`.

    Raises:
        UserError: Too few updates are left.
    """
    first = start + _PROFILED_AFTER + 1
    updates = range(first, min(first + count, end + 1))
    if count and not updates:
        raise UserError(
            f"no step can be profiled: {end - start} are left, and the first {_PROFILED_AFTER} "
            "compile"
        )
    return updates


class Log:
    """Log of a run as JSON lines, written by process 0."""

    def __init__(self, path: Path, last: int, report: Callable[[LogLine], None]):
        """Opens the log of a run that resumes after update `last`; drops later lines.

        Raises:
            UserError: The file cannot be read or written.
        """
        self._path = path if jax.process_index() == 0 else None
        self._report = report
        if self._path is None or not path.exists():
            return
        kept = 0
        with reading(path), path.open("rb+") as file:
            for line in file:
                # A last line without a line break was cut off when the run was killed.
                if not line.endswith(b"\n") or json.loads(line)["step"] > last:
                    break
                kept += len(line)
            file.truncate(kept)

    def write(self, line: LogLine) -> None:
        """Appends one line.

        Raises:
            UserError: The disk is full.
        """
        if self._path is not None:
            with writing(self._path), self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._report(line)
