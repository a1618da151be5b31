"""A run: batches go through the step, numbers into a log, now and then all into a checkpoint."""

import contextlib
import json
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lwm.data.batch import MODALITIES, Batch
from lwm.data.loader import Delivered, Loader, merge
from lwm.data.stream import State as Place
from lwm.errors import UserError
from lwm.model.config import LlamaConfig
from lwm.model.llama import Llama
from lwm.train.checkpoint import Checkpoints, abstract_state
from lwm.train.config import Training
from lwm.train.optimizer import build_optimizer, build_schedule
from lwm.train.placing import place
from lwm.train.step import Metrics, State, Step
from lwm.train.validate import HeldOut, measure_all

MOST_BAD = 3
"""Updates in a row that may fail to be finite."""

Line = dict[str, Any]
"""One line of the log."""

_PROFILED_AFTER = 2
"""Updates before a profile begins: the first compiles."""
_MOST_NAMED = 20


class Stopped(Exception):
    """The run was asked to stop, and has saved all that it needs to go on."""


def train(
    config: Training,
    model: LlamaConfig,
    make_model: Callable[[], Llama],
    loader: Loader,
    mesh: Mesh,
    folder: Path,
    *,
    held_out: Mapping[str, HeldOut] | None = None,
    begin: Callable[[int], None] = lambda last: None,
    report: Callable[[Line], None] = lambda line: None,
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    profile: int = 0,
) -> State:
    """Trains, from the newest checkpoint in `folder` if there is one.

    Args:
        config: How.
        model: What is trained.
        make_model: Draws or reads the weights to start from, under the mesh in use; they are
            stacked, and placed as by `Llama.init`.
        loader: The batches, not yet begun.
        mesh: The devices.
        folder: Gets `checkpoints` and `log.jsonl`: a line for each update, and one for each look
            at the held-out sets.
        held_out: Sets that are only looked at, by name.
        begin: Told the step that the run goes on after, 0 at first.
        report: Told each line of the log.
        warn: Told what is passed over: bad examples, damaged checkpoints.
        profile: Updates of which a trace is written to the folder `profile`.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; run again, it goes on.
        UserError: The data or the disk failed, or three updates in a row were not finite; the last
            good checkpoint is whole.
    """
    optimizer = build_optimizer(config.optimizer, config.steps)
    rate = build_schedule(config.optimizer.schedule, config.steps)
    step = Step(optimizer, config.loss)

    def abstract() -> State:
        return State.start(Llama.init(model, key=jr.key(0)), optimizer)

    folder.mkdir(parents=True, exist_ok=True)
    with (
        jax.set_mesh(mesh),
        Checkpoints(folder / "checkpoints", config.keep, warn) as checkpoints,
        contextlib.closing(iter(loader)) as batches,
        asked_to_stop() as asked,
    ):
        found = checkpoints.restore(abstract_state(abstract, mesh))
        if found is None:
            start, state = 0, State.start(make_model(), optimizer)
        else:
            start, state, data = found
            loader.restore(data)
        begin(start)
        log = Log(folder / "log.jsonl", start, report)
        traced = Profile(folder / "profile", start, config.steps, profile)
        for number in range(start + 1, config.steps + 1):
            begun = time.perf_counter()
            traced.before(number)
            given = [next(batches) for _ in range(config.accumulate)]
            for fault in (fault for one in given for fault in one.faults):
                warn(f"passed over: {fault}")
            placed, index = place(on_top(given), mesh, config.layout, rows=loader.rows)
            state, metrics = step(state, placed, index)
            line = describe(number, metrics, placed.segments.size, given[-1].read)
            line |= {"learning_rate": float(np.asarray(rate(number - 1)))}
            if not metrics.finite:
                line["examples"] = names(given)
            log.write(line | {"seconds": time.perf_counter() - begun})
            traced.after(number)
            require_finite(state, number, folder)
            stop = any_asked(asked)
            last = number == config.steps or stop
            if held_out and validation_is_due(config, number):
                log.write({"step": number, "held_out": measure_all(held_out, state.model, mesh)})
            if (last or config.keep.due(number)) and metrics.finite:
                checkpoints.save(number, state, gather(given[-1].state))
            if stop and number < config.steps:
                checkpoints.wait()
                raise Stopped(f"stopped after step {number}; run the same again to go on")
    return state


def validation_is_due(config: Training, number: int) -> bool:
    """Says whether held-out sets are looked at after an update."""
    every = config.validate_every
    return number == config.steps or bool(every and number % every == 0)


def on_top(given: list[Delivered]) -> Batch:
    """Stacks batches."""
    fields = zip(*(one.batch for one in given), strict=True)
    return Batch._make(np.stack(field) for field in fields)


def names(given: list[Delivered]) -> list[str]:
    """Returns the examples of batches, the first few of many."""
    found = [name for one in given for row in one.examples for name in row]
    more = [f"and {len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []
    return found[:_MOST_NAMED] + more


def describe(number: int, metrics: Metrics, slots: int, read: dict[str, int]) -> Line:
    """Returns what the log says of one update; waits for the devices."""
    found = jax.device_get(metrics)
    line = {
        "step": number,
        "loss": float(found.loss),
        "gradient_norm": float(found.gradient_norm),
        "tokens": int(found.tokens),
        "slots": slots,
        "pairs": float(found.pairs),
        "packing": int(found.tokens) / slots,
        "finite": bool(found.finite),
        "memory": memory(),
    }
    for modality, nll, accuracy in zip(MODALITIES, found.nll, found.accuracy, strict=True):
        line |= {f"{modality}_loss": float(nll), f"{modality}_accuracy": float(accuracy)}
    return line | {f"examples_{what}": count for what, count in read.items()}


def memory() -> int:
    """Returns the bytes in use at the peak so far: of the fullest device here, or of the process
    where devices do not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(found.get("peak_bytes_in_use", 0) for found in stats)
    unit = 1 if sys.platform == "darwin" else 1024
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def gather(place: Place) -> Place:
    """Returns the loaders' state of all processes."""
    if jax.process_count() == 1:
        return place
    data = np.frombuffer(json.dumps(place).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array(data.size)).max())
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: data.size] = data
    return merge([json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)])


def require_finite(state: State, number: int, folder: Path) -> None:
    """Ends a run that has come off the rails.

    Raises:
        UserError: As many updates in a row as are allowed were not finite.
    """
    if int(state.bad) >= MOST_BAD:
        raise UserError(
            f"the updates of steps {number - MOST_BAD + 1} to {number} are not finite; the last "
            f"good checkpoint in {folder} is whole: lower the learning rate, or look at the data"
        )


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Turns SIGTERM and the first Ctrl-C into a flag; the second Ctrl-C ends at once.

    Elsewhere than in the main thread the flag stays down.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _: Any) -> None:
        if number == signal.SIGINT and asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def any_asked(asked: threading.Event) -> bool:
    """Says whether any process was asked to stop, the same on all."""
    if jax.process_count() == 1:
        return asked.is_set()
    return bool(multihost_utils.process_allgather(np.array(asked.is_set())).any())


class Profile:
    """A trace of some updates, for TensorBoard or Perfetto."""

    def __init__(self, folder: Path, start: int, end: int, count: int):
        """Prepares one of `count` updates of a run from `start` to `end`; of none, if that is 0."""
        self._folder, self._first = folder, start + _PROFILED_AFTER + 1
        self._last = min(self._first + count - 1, end)

    def before(self, number: int) -> None:
        """Begins before the first."""
        if number == self._first <= self._last:
            jax.profiler.start_trace(str(self._folder))

    def after(self, number: int) -> None:
        """Ends after the last."""
        if number == self._last >= self._first:
            jax.profiler.stop_trace()


class Log:
    """Lines of JSON; those after the checkpoint gone on from are dropped. Process 0 writes it."""

    def __init__(self, path: Path, last: int, report: Callable[[Line], None]):
        """Opens the log of a run that goes on after update `last`."""
        self._path = path if jax.process_index() == 0 else None
        self._report = report
        if self._path is None or not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= last:
                    kept.append(line)
            except json.JSONDecodeError:
                break  # Cut off where the run was killed.
        path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, line: Line) -> None:
        """Appends one line."""
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._report(line)
