"""A run: batches go through a task, numbers into a log, now and then all into a checkpoint."""

import contextlib
import json
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from lwm import processes as together
from lwm.data.loader import Delivered, require_few_bad
from lwm.errors import UserError
from lwm.files import reading, writing
from lwm.train.checkpoint import Checkpointable, Checkpoints, abstract_state
from lwm.train.config import LoopConfig

MOST_BAD = 3
"""Updates in a row that may fail to be finite."""

LogLine = dict[str, Any]
"""One line of the log."""

_PROFILED_AFTER = 2
"""Updates before a profile begins: the first compiles."""
_MOST_NAMED = 20


class Stopped(Exception):
    """The run was asked to stop, and has saved all that it needs to go on."""

    def __init__(self, step: int, by: int):
        """Says after which step, and by which signal."""
        super().__init__(f"stopped after step {step}; run the same again to go on")
        self.by = by


@runtime_checkable
class LogSink(Protocol):
    """Who is told of a run."""

    def begin(self, last: int) -> None:
        """Is told the step that the run goes on after, 0 at first."""

    def __call__(self, line: LogLine) -> None:
        """Is told each line of the log, in process 0."""

    def warn(self, text: str) -> None:
        """Is told what is passed over: bad examples, damaged checkpoints."""


@runtime_checkable
class Batches(Protocol):
    """What is learnt from, without end."""

    max_bad_share: float

    def __iter__(self) -> Generator[Delivered]: ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the batch with which `state` was delivered."""

    def merge(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns the state of all processes out of the state of each."""
        ...


@runtime_checkable
class Task(Protocol):
    """What a run trains: all its methods are called under the mesh."""

    @property
    def batches(self) -> Batches:
        """What is learnt from, not yet begun."""
        ...

    def abstract(self) -> Any:
        """Makes a state; it is only asked what that would be like."""

    def start(self) -> Any:
        """Makes the first state."""

    def update(self, state: Any, given: list[Delivered]) -> tuple[Any, LogLine]:
        """Returns the state after one more update, the old one consumed, and what the log says.

        A line has at least `loss` and `finite`. Where this is false, the update was not made.
        """
        ...

    def measure(self, state: Any, number: int) -> dict[str, Any]:
        """Looks at each held-out set after update `number`; returns what the log says of each."""
        ...


def train(
    course: LoopConfig,
    task: Task,
    mesh: Mesh,
    folder: Path,
    *,
    follower: LogSink,
    profile: int = 0,
) -> Any:
    """Trains, from the newest checkpoint in `folder` if there is one; returns the last state.

    Args:
        course: How long.
        task: What is trained, and on what.
        mesh: The devices.
        folder: Gets `checkpoints` and `log.jsonl`: a line for each update, and one for each look
            at the held-out sets.
        follower: Told what happens.
        profile: Updates of which a trace is written to the folder `profile`.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; run again, it goes on.
        UserError: The data or the disk failed, or three updates in a row were not finite; the last
            good checkpoint is whole.
    """
    batches = task.batches
    with (
        jax.set_mesh(mesh),
        Checkpoints(folder / "checkpoints", course.keep, follower.warn) as checkpoints,
        contextlib.closing(iter(batches)) as delivered,
        asked_to_stop() as asked,
    ):
        found = checkpoints.restore(abstract_state(task.abstract, mesh))
        if found is None:
            start, state = 0, task.start()
        else:
            start, state, data = found
            batches.restore(data)
        with together.all_or_none():
            follower.begin(start)
            log = Log(folder / "log.jsonl", start, follower)
        told = DataWarnings(follower.warn)
        with Profile(folder / "profile", start, course.steps, profile) as traced:
            for number in range(start + 1, course.steps + 1):
                begun = time.perf_counter()
                given, read, stop = fetch(delivered, course.accumulate, asked)
                told.tell(given)
                require_few_bad(read, batches.max_bad_share)
                with traced.update(number):
                    state, line = task.update(state, given)
                line = {"step": number} | line | {"memory": memory()}
                line |= {f"examples_{what}": count for what, count in read.items()}
                if not line["finite"]:
                    line["examples"] = names(given)
                log.write(line | {"seconds": time.perf_counter() - begun})
                require_finite(state, number, folder)
                if validation_is_due(course, number) and (scores := task.measure(state, number)):
                    log.write({"step": number, "held_out": scores})
                if number == course.steps or stop or course.keep.due(number):
                    states = together.gather(given[-1].state())
                    checkpoints.save(number, state, batches.merge(states))
                if stop and number < course.steps:
                    checkpoints.wait()
                    raise Stopped(number, stop)
    return state


def fetch(
    batches: Iterator[Delivered], count: int, asked: "StopRequest"
) -> tuple[list[Delivered], dict[str, int], int]:
    """Returns some batches, what all processes have read, and the signal if any was asked to stop.

    Raises:
        UserError: This process cannot read its data, or another one cannot.
    """
    given, failure, counts = [], None, [0, 0, 0, 0]
    try:
        given = [next(batches) for _ in range(count)]
        counts = list(given[-1].read.values())
    except Exception as error:
        failure = error
    told = together.agree_on(failure, [asked.signal, *counts])
    signals, *counts = zip(*told, strict=True)
    read = dict(zip(given[-1].read, map(sum, counts), strict=True))
    return given, read, max(signals)


def validation_is_due(course: LoopConfig, number: int) -> bool:
    """Says whether held-out sets are looked at after an update."""
    every = course.validate_every
    return number == course.steps or bool(every and number % every == 0)


def names(given: list[Delivered]) -> list[str]:
    """Returns the examples of batches, those of all processes, the first few of many."""
    own = [name for one in given for row in one.examples for name in row]
    found = list(dict.fromkeys(name for part in together.gather(own) for name in part))
    more = [f"and {len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []
    return found[:_MOST_NAMED] + more


def memory() -> int:
    """Returns the bytes in use at the peak so far: of the fullest device here, or of the process
    where devices do not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(found.get("peak_bytes_in_use", 0) for found in stats)
    unit = 1 if sys.platform == "darwin" else 1024
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def require_finite(state: Checkpointable, number: int, folder: Path) -> None:
    """Ends a run that has come off the rails.

    Raises:
        UserError: As many updates in a row as are allowed were not finite.
    """
    if int(state.bad) >= MOST_BAD:
        raise UserError(
            f"the updates of steps {number - MOST_BAD + 1} to {number} are not finite; the last "
            f"good checkpoint in {folder} is whole. The log names the examples: leave them out, "
            "or lower the learning rate, and start anew in another folder"
        )


class StopRequest:
    """Whether the run was asked to stop."""

    signal: int = 0
    """The number of the signal that asked; 0 for none."""


@contextlib.contextmanager
def asked_to_stop() -> Iterator[StopRequest]:
    """Keeps SIGTERM and the first Ctrl-C as a question; the second Ctrl-C ends at once.

    Elsewhere than in the main thread nothing is ever asked.
    """
    asked = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _: Any) -> None:
        if number == signal.SIGINT and asked.signal:
            raise KeyboardInterrupt
        asked.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class DataWarnings:
    """Says what becomes of examples that are not simply learnt."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._seen: set[str] = set()

    def tell(self, given: list[Delivered]) -> None:
        """Names each example that was passed over; once, that long ones are dropped or split."""
        for fault in (fault for one in given for fault in one.faults):
            self._warn(f"passed over: {fault}")
        read = given[-1].read
        for what, text in (
            ("dropped", "some examples are longer than a row, or have no target: they are dropped"),
            ("split", "some examples are longer than a row: they are split"),
        ):
            if read[what] and what not in self._seen:
                self._seen.add(what)
                self._warn(f"{text}; the log counts them")


class Profile:
    """A trace of some updates, for TensorBoard or Perfetto."""

    def __init__(self, folder: Path, start: int, end: int, count: int):
        """Prepares one of `count` updates of a run from `start` to `end`.

        Raises:
            UserError: The run has no such updates left.
        """
        self._folder = folder
        # The first updates compile.
        first = start + _PROFILED_AFTER + 1
        self._traced = range(first, min(first + count, end + 1))
        self._runs = False
        if count and not self._traced:
            raise UserError(
                f"no step can be profiled: {end - start} are left, and the first {_PROFILED_AFTER} "
                "compile"
            )

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._runs:
            jax.profiler.stop_trace()

    @contextlib.contextmanager
    def update(self, number: int) -> Iterator[None]:
        """Begins before the first update that is traced, and ends after the last."""
        if self._traced and number == self._traced[0]:
            jax.profiler.start_trace(str(self._folder))
            self._runs = True
        yield
        if self._traced and number == self._traced[-1]:
            jax.profiler.stop_trace()
            self._runs = False


class Log:
    """Lines of JSON; those after the checkpoint gone on from are dropped. Process 0 writes it."""

    def __init__(self, path: Path, last: int, report: Callable[[LogLine], None]):
        """Opens the log of a run that goes on after update `last`.

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
                # A last line without an end was cut off where the run was killed.
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
