"""A run: batches go through the step, numbers into a log, now and then all into a checkpoint."""

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lwm.data.batch import MODALITIES, Batch
from lwm.data.loader import Loader
from lwm.errors import UserError
from lwm.model.llama import Llama
from lwm.ops.layout import Layout, order
from lwm.sharding import ROWS, TOKENS, on_mesh, require_batch
from lwm.train.checkpoint import Checkpoints, Keep, abstract_state
from lwm.train.loss import Loss
from lwm.train.optimizer import AdamW
from lwm.train.step import Metrics, State, Step

MOST_BAD = 3
"""Updates in a row that may fail to be finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained, apart from the model and the data."""

    steps: int
    accumulate: int = 1
    """Batches whose gradients are added for one update."""
    optimizer: AdamW = AdamW()
    loss: Loss = Loss()
    keep: Keep = Keep()
    layout: Layout = "zigzag"
    """How rows are laid out over `sp`."""

    def __post_init__(self):
        """Refuses a run without steps.

        Raises:
            UserError: The value.
        """
        if self.steps < 1 or self.accumulate < 1:
            raise UserError(
                f"{self.steps} steps of {self.accumulate} batches: both must be at least 1"
            )


class Stopped(Exception):
    """The run was asked to stop, and has saved all that it needs to go on."""


def train(
    config: Training,
    make_model: Callable[[], Llama],
    loader: Loader,
    mesh: Mesh,
    folder: Path,
    *,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
) -> State:
    """Trains, from the newest checkpoint in `folder` if there is one.

    Args:
        config: How.
        make_model: Draws or reads the model to start from, under the mesh in use.
        loader: The batches, not yet begun.
        mesh: The devices.
        folder: Gets `checkpoints` and `log.jsonl`, a line for each update.
        report: Told each line of the log.

    Raises:
        Stopped: SIGTERM came; run again, it goes on.
        UserError: The data or the disk failed, or three updates in a row were not finite; the last
            good checkpoint is whole.
    """
    optimizer = config.optimizer.build(config.steps)
    step = Step(optimizer, config.loss)

    def make() -> State:
        return State.start(make_model(), optimizer)

    folder.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(mesh), Checkpoints(folder / "checkpoints", config.keep) as checkpoints:
        found = checkpoints.restore(abstract_state(make, mesh))
        if found is None:
            start, state = 0, make()
        else:
            start, state, data = found
            loader.restore(data)
        log = Log(folder / "log.jsonl", start)
        batches = iter(loader)
        with asked_to_stop() as asked:
            for number in range(start + 1, config.steps + 1):
                begun = time.perf_counter()
                given, data = take(batches, config.accumulate)
                placed, index = place(given, mesh, config.layout)
                state, metrics = step(state, placed, index)
                line = describe(number, metrics, given, time.perf_counter() - begun)
                log.write(line)
                report(line)
                require_finite(state, number, folder)
                last = number == config.steps or asked.is_set()
                if (last or config.keep.due(number)) and metrics.finite:
                    checkpoints.save(number, state, data)
                if asked.is_set():
                    checkpoints.wait()
                    raise Stopped(f"stopped after step {number}; run the same again to go on")
    return state


def take(batches: Iterator[tuple[Batch, dict]], count: int) -> tuple[Batch, dict]:
    """Returns `count` batches on top of each other, and the loader's state after them."""
    taken = [next(batches) for _ in range(count)]
    fields = zip(*(batch for batch, _ in taken), strict=True)
    return Batch._make(np.stack(field) for field in fields), taken[-1][1]


def place(batches: Batch, mesh: Mesh, layout: Layout) -> tuple[Batch, jax.Array]:
    """Lays batches out and puts them on the mesh; returns the order of their rows, too.

    Raises:
        UserError: Rows or tokens do not divide over the mesh.
    """
    _, rows, length = batches.tokens.shape
    require_batch(mesh, rows=rows, length=length)
    there = order(layout, length, mesh.shape["sp"])

    def put(x: np.ndarray, spec: Any) -> jax.Array:
        sharding = on_mesh(mesh, type(spec)(None, *spec))
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    *fields, counts = batches
    placed = [put(np.ascontiguousarray(field[..., there]), TOKENS) for field in fields]
    return Batch._make([*placed, put(counts, ROWS)]), jnp.asarray(there)


def describe(number: int, metrics: Metrics, batches: Batch, seconds: float) -> dict[str, Any]:
    """Returns what the log says of one update; waits for the devices."""
    found = jax.device_get(metrics)
    filled = batches.segments >= 0
    line = {
        "step": number,
        "loss": float(found.loss),
        "gradient_norm": float(found.gradient_norm),
        "tokens": int(filled.sum()),
        "packing": float(filled.mean()),
        "seconds": seconds,
        "finite": bool(found.finite),
    }
    for modality, nll, accuracy in zip(MODALITIES, found.nll, found.accuracy, strict=True):
        line |= {f"{modality}_loss": float(nll), f"{modality}_accuracy": float(accuracy)}
    return line


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
    """Turns SIGTERM into a flag; elsewhere than in the main thread the flag stays down."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


class Log:
    """Lines of JSON, one for each update; those after the checkpoint gone on from are dropped."""

    def __init__(self, path: Path, last: int):
        """Opens the log of a run that goes on after update `last`."""
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= last:
                        kept.append(line)
                except json.JSONDecodeError:
                    break  # Cut off where the run was killed.
        path.write_text("".join(f"{line}\n" for line in kept))
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        """Appends one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
