"""The training of a language model, of text and vision alike, as the loop has it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lwm.data.example import MODALITIES, Batch
from lwm.data.loader import Delivered, Loader
from lwm.model.llama import Llama
from lwm.train.config import Training
from lwm.train.optimizer import build_optimizer, build_schedule
from lwm.train.placing import shard_batch
from lwm.train.step import StepMetrics, TrainState, TrainStep
from lwm.train.validate import HeldOut, measure_all


class LanguageTask:
    """A model, packed rows to learn, and others to be measured by."""

    def __init__(
        self,
        config: Training,
        init: Callable[[], Llama],
        make_model: Callable[[], Llama],
        loader: Loader,
        mesh: Mesh,
        held_out: Mapping[str, HeldOut] | None = None,
    ) -> None:
        """Prepares to train.

        Args:
            config: How.
            init: Calls `Llama.init`; only the shapes of its result are used.
            make_model: Draws or reads the weights to start from, under the mesh in use; they are
                stacked, and placed as by `Llama.init`.
            loader: The batches, not yet begun.
            mesh: The devices.
            held_out: Sets that are only looked at, by name.
        """
        self.batches = loader
        self._config, self._init, self._make = config, init, make_model
        self._mesh, self._held_out = mesh, held_out or {}
        self._optimizer = build_optimizer(config.optimizer, config.steps)
        self._rate = build_schedule(config.optimizer.schedule, config.steps)
        self._step = TrainStep(self._optimizer, config.loss)

    def abstract(self) -> TrainState:
        """Makes a state of any weights."""
        return TrainState.start(self._init(), self._optimizer)

    def start(self) -> TrainState:
        """Makes the first state."""
        return TrainState.start(self._make(), self._optimizer)

    def update(
        self, state: TrainState, given: list[Delivered]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state after one more update, and what the log says."""
        fields = zip(*(one.batch for one in given), strict=True)
        stacked = Batch._make(np.stack(field) for field in fields)
        layout, rows = self._config.layout, self.batches.rows
        placed, index = shard_batch(stacked, self._mesh, layout, rows=rows)
        state, found = self._step(state, placed, index)
        line = _describe(jax.device_get(found), placed.segments.size)
        return state, line | {"learning_rate": float(np.asarray(self._rate(found.updates)))}

    def measure(self, state: TrainState, number: int) -> dict[str, Any]:
        """Returns the losses on each held-out set."""
        del number  # Nothing but the log tells of them.
        return measure_all(self._held_out, state.model, self._mesh)


def _describe(found: StepMetrics, slots: int) -> dict[str, Any]:
    """Returns what the log says of one update; of modalities, those that had targets."""
    line = {
        "loss": float(found.loss),
        "gradient_norm": float(found.gradient_norm),
        "tokens": int(found.tokens),
        "slots": slots,
        "pairs": float(found.pairs),
        "packing": int(found.tokens) / slots,
        "finite": bool(found.finite),
    }
    of_each = zip(MODALITIES, found.nll, found.accuracy, found.targets, strict=True)
    for modality, nll, accuracy, targets in of_each:
        if targets:
            line |= {f"{modality}_loss": float(nll), f"{modality}_accuracy": float(accuracy)}
    return line
