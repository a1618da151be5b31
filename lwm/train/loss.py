"""The loss of a batch in which every example counts as it would alone on its row."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lwm.data.example import Batch
from lwm.model.layers import Packing
from lwm.model.llama import Llama
from lwm.train.config import Loss


class Sums(NamedTuple):
    """Sums over rows by modality; those of several batches can be added."""

    nll: Float[Array, " M"]
    """Weighted negative log-likelihoods, not yet divided."""
    correct: Float[Array, " M"]
    """Number of trained targets that are the most likely id."""
    targets: Float[Array, " M"]
    """Number of trained targets, those with a weight above 0."""


def loss(
    model: Llama,
    batch: Batch,
    index: Array,
    counts: Float[Array, " M"],
    config: Loss,
) -> tuple[Float[Array, ""], Sums]:
    """Returns the part of the loss of a step that one of its batches contributes.

    With the same `counts` for each batch of a step, the parts add up to its loss. The mean of the
    batches' own losses would differ where their counts differ.

    Args:
        model: The model.
        batch: Some of the rows of the step.
        index: Order of the tokens of a row, see `lwm.ops.layout`.
        counts: `Batch.counts` summed over all rows of the step.
        config: Weights of the parts.
    """
    packing = Packing(segments=batch.segments, positions=batch.positions, index=index)
    found = model.losses(batch.tokens, batch.targets, packing)
    tokens = model.config.tokens
    is_vision = batch.targets >= tokens.text
    trained = batch.weights > 0

    def by_modality(values: Float[Array, "B S"]) -> Float[Array, " M"]:
        values = jnp.where(trained, values, 0)
        return jnp.stack([jnp.sum(values * ~is_vision), jnp.sum(values * is_vision)])

    nll = by_modality(batch.weights * found.nll)
    squared = by_modality(batch.weights * jnp.square(found.lse))
    shares = jnp.array([config.text, config.vision] if tokens.vision else [1.0, 0.0])
    # Without targets the loss is 0, not 0 / 0.
    total = jnp.sum(shares * (nll + config.z * squared) / jnp.maximum(counts, 1e-10))
    return total, Sums(nll, by_modality(1.0 * found.correct), by_modality(jnp.ones_like(found.nll)))
