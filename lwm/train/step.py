"""One update of a model."""

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
from lwm.train.config import Loss
from lwm.train.loss import Sums, loss


class TrainState(eqx.Module):
    """All that a run has to keep to go on."""

    model: Llama
    optimizer: optax.OptState
    step: Int[Array, ""]
    """Updates made or skipped."""
    bad: Int[Array, ""]
    """Updates skipped in a row because they were not finite."""

    @classmethod
    def start(cls, model: Llama, optimizer: optax.GradientTransformation) -> "TrainState":
        """Begins with a model, under the mesh in use."""
        # Two zeros, not one twice: both are given away at the first step.
        step, bad = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return cls(model, optimizer.init(cast(Any, model)), step, bad)


class StepMetrics(NamedTuple):
    """What one step says of itself."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    """Before clipping."""
    nll: Float[Array, " M"]
    """Loss of each modality; 0 where there was none."""
    accuracy: Float[Array, " M"]
    tokens: Int[Array, ""]
    """Slots that hold one."""
    pairs: Float[Array, ""]
    """Queries and keys that attention brings together."""
    finite: Bool[Array, ""]
    """Whether the update was made."""
    targets: Float[Array, " M"]
    """Learnt targets of each modality."""
    updates: Int[Array, ""]
    """Updates made before this one, those that were skipped left out: its place in the schedule."""


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """An update out of one or several batches, compiled once for each of their shapes."""

    optimizer: optax.GradientTransformation
    loss: Loss

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def __call__(
        self, state: TrainState, batches: Batch, index: Int[Array, " S"]
    ) -> tuple[TrainState, StepMetrics]:
        """Updates the model, unless a number is not finite: then only the counters change.

        Args:
            state: Consumed.
            batches: Fields have a leading axis; its entries go through the model one by one, and
                their gradients are added.
            index: The order in which rows are laid out.
        """
        counts = jnp.sum(batches.counts, axis=(0, 1))
        differentiate = jax.value_and_grad(loss, has_aux=True)

        def accumulate(total, batch):
            (value, sums), grads = differentiate(state.model, batch, index, counts, self.loss)
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
        # Each token sees those of its example up to itself.
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


def updates_made(optimizer: optax.OptState) -> Int[Array, ""]:
    """Returns how often an optimizer has updated; Adam and the schedule count alike."""
    return optax.tree.get_all_with_path(optimizer, "count")[0][1]
