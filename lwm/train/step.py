"""One update of a language model."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from lwm.data.example import Batch
from lwm.model.llama import Llama
from lwm.model.lora import Adapter
from lwm.train.config import Loss
from lwm.train.loss import Sums, loss


class TrainState(eqx.Module):
    """State of a run: weights that are trained, optimizer and counters."""

    model: Llama | Adapter
    optimizer: optax.OptState
    step: Int[Array, ""]
    """Number of updates, with skipped ones."""
    bad: Int[Array, ""]
    """Number of updates in a row that were skipped as not finite."""

    @classmethod
    def start(cls, model: Llama | Adapter, optimizer: optax.GradientTransformation) -> "TrainState":
        """Returns the first state of a model, under the mesh in use."""
        # Two zeros, not one twice: both are donated at the first step.
        step, bad = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return cls(model, optimizer.init(cast(Any, model)), step, bad)


class StepMetrics(NamedTuple):
    """Measurements of one update."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    """Before clipping."""
    nll: Float[Array, " M"]
    """Loss of each modality; 0 for one without targets."""
    accuracy: Float[Array, " M"]
    tokens: Int[Array, ""]
    """Number of slots that are not padding."""
    pairs: Float[Array, ""]
    """Number of pairs of query and key in attention."""
    finite: Bool[Array, ""]
    """False if the update was skipped."""
    targets: Float[Array, " M"]
    """Number of trained targets of each modality."""
    updates: Int[Array, ""]
    """Number of updates before this one, without skipped ones: its place in the schedule."""


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """Update from one or several batches, compiled once for each of their shapes."""

    optimizer: optax.GradientTransformation
    loss: Loss

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def __call__(
        self,
        state: TrainState,
        batches: Batch,
        index: Int[Array, " S"],
        frozen: Llama | None = None,
    ) -> tuple[TrainState, StepMetrics]:
        """Updates the model; if a number is not finite, only the counters change.

        Args:
            state: Consumed.
            batches: Batches along a leading axis. They go through the model one by one, and their
                gradients are summed.
            index: Order of the tokens of a row.
            frozen: The model whose adapters are trained; None: the state has the model.
        """
        counts = jnp.sum(batches.counts, axis=(0, 1))

        @partial(jax.value_and_grad, has_aux=True)
        def differentiate(trained, batch):
            model = whole_model(trained, frozen)
            return loss(model, batch, index, counts, self.loss)

        def accumulate(total, batch):
            (value, sums), grads = differentiate(state.model, batch)
            return jax.tree.map(jnp.add, total, (value, sums, grads)), None

        nothing = jax.tree.map(jnp.zeros_like, state.model)
        zeros = jnp.zeros(counts.shape)
        start = jnp.zeros(()), Sums(zeros, zeros, zeros), nothing
        if batches.tokens.shape[0] == 1:
            (value, sums, grads), _ = accumulate(start, jax.tree.map(lambda x: x[0], batches))
        else:
            (value, sums, grads), _ = jax.lax.scan(accumulate, start, batches)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        weights = cast(Any, state.model)  # optax's own type knows no modules
        updates, optimizer = self.optimizer.update(grads, state.optimizer, weights)
        new = optax.apply_updates(weights, updates), optimizer
        old = state.model, state.optimizer
        model, optimizer = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        bad = jnp.where(finite, 0, state.bad + 1)
        nll = sums.nll / jnp.maximum(counts, 1e-10)
        filled = batches.segments >= 0
        # Each token attends to those of its example up to itself.
        pairs = jnp.sum(jnp.where(filled, batches.positions + 1.0, 0))
        accuracy = sums.correct / jnp.maximum(sums.targets, 1)
        return (
            TrainState(model, optimizer, state.step + 1, bad),
            StepMetrics(
                value,
                norm,
                nll,
                accuracy,
                jnp.sum(filled),
                pairs,
                finite,
                sums.targets,
                updates_made(state.optimizer),
            ),
        )


def whole_model(trained: Llama | Adapter, frozen: Llama | None) -> Llama:
    """Returns the model of which a part is trained, or all."""
    if isinstance(trained, Llama):
        return trained
    assert frozen is not None, "adapters are of a model"
    return trained.on(frozen)


def updates_made(optimizer: optax.OptState) -> Int[Array, ""]:
    """Returns the number of updates of an optimizer; Adam and the schedule count alike."""
    return optax.tree.get_all_with_path(optimizer, "count")[0][1]
