"""Loss on held-out rows by modality and by position of a token in its example.

A model that uses its context predicts late tokens better than early ones. Where the loss stops
falling with position, it does not use more context.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lwm.data.example import MODALITIES, Batch, PackedRow, stack
from lwm.data.pack import Packer, PackingConfig, fill_row
from lwm.data.stream import Examples
from lwm.errors import UserError
from lwm.model.layers import Packing
from lwm.model.llama import Llama
from lwm.ops.layout import Layout
from lwm.tokens import TokenSpace
from lwm.train.placing import own_rows, shard_batch

_FIRST = 6
"""Logarithm to base 2 of the positions of the first range."""


class ValidationSums(NamedTuple):
    """Sums over the targets of rows; those of several batches can be added."""

    nll: Float[Array, " M"]
    """Negative log-likelihoods, in nats."""
    correct: Float[Array, " M"]
    """Number of targets that are the most likely id of their modality."""
    targets: Float[Array, " M"]
    by_position: Float[Array, " P"]
    """Negative log-likelihoods of all modalities, between `position_edges`."""
    squares: Float[Array, " P"]
    """Their squares."""
    at_position: Float[Array, " P"]
    """Number of targets at these positions."""


class HeldOut:
    """Held-out rows of one set, and the measurement of a model on them."""

    def __init__(self, rows: Sequence[PackedRow], *, num_rows: int, layout: Layout):
        """Keeps rows.

        Args:
            rows: All of them, on every process.
            num_rows: Rows in a batch.
            layout: Layout of rows over `sp`.
        """
        self._rows, self._num_rows, self._layout = rows, num_rows, layout

    @classmethod
    def read(
        cls,
        examples: Examples,
        packing: PackingConfig,
        tokens: TokenSpace,
        *,
        most: int,
        num_rows: int,
        layout: Layout,
    ) -> "HeldOut":
        """Packs up to `most` rows, in the order of the examples, without bad ones.

        Raises:
            UserError: No example can be read.
        """
        packer, rows, fault = Packer(packing), [], "no example fits on a row"

        def readable() -> Iterator:
            nonlocal fault
            for number in range(len(examples)):
                try:
                    yield examples[number]
                except UserError as error:
                    fault = str(error)

        for pieces in packer.pack(readable()):
            rows.append(fill_row(pieces, packing, tokens))
            if len(rows) == most:
                break
        if not rows:
            raise UserError(f"nothing can be read of a held-out set: {fault}")
        return cls(rows, num_rows=num_rows, layout=layout)

    def measure(self, model: Llama, mesh: Mesh) -> dict[str, Any]:
        """Returns the loss per token by modality and by position, as plain values for a log.

        `by_position` lists [first, end, loss, tokens, error] for positions first <= p < end; the
        standard error of the loss takes its tokens as independent, and is None of a single one.
        """
        total: ValidationSums | None = None
        own = own_rows(mesh, self._num_rows)
        for start in range(0, len(self._rows), self._num_rows):
            batch = _filled(self._rows[start : start + self._num_rows], self._num_rows)
            given = Batch._make(field[None, own] for field in batch)
            placed, index = shard_batch(given, mesh, self._layout, rows=self._num_rows)
            found = _measure(model, jax.tree.map(lambda x: x[0], placed), index)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        assert total is not None
        return _describe(jax.device_get(total), self._rows[0].tokens.size)


@jax.jit
def _measure(model: Llama, batch: Batch, index: Array) -> ValidationSums:
    packing = Packing(segments=batch.segments, positions=batch.positions, index=index)
    found = model.losses(batch.tokens, batch.targets, packing)
    trained = batch.weights > 0
    is_vision = batch.targets >= model.config.tokens.text
    nll = jnp.where(trained, found.nll, 0)
    kinds = [trained & ~is_vision, trained & is_vision]
    there = [
        trained & (batch.positions >= first) & (batch.positions < end)
        for first, end in itertools.pairwise(position_edges(batch.tokens.shape[-1]))
    ]
    return ValidationSums(
        nll=jnp.stack([jnp.sum(nll * kind) for kind in kinds]),
        correct=jnp.stack([jnp.sum(1.0 * (found.correct & kind)) for kind in kinds]),
        targets=jnp.stack([jnp.sum(1.0 * kind) for kind in kinds]),
        by_position=jnp.stack([jnp.sum(nll * here) for here in there]),
        squares=jnp.stack([jnp.sum(jnp.square(nll) * here) for here in there]),
        at_position=jnp.stack([jnp.sum(1.0 * here) for here in there]),
    )


def position_edges(length: int) -> list[int]:
    """Returns the bounds of the ranges of positions in rows of a length.

    Each range is twice as long as the one before. The first has 64 positions, or an eighth of a
    shorter row: fewer would have too few tokens for a mean.
    """
    places = (length - 1).bit_length()
    first = min(_FIRST, max(0, places - 3))
    return [0, *(2**i for i in range(first, places + 1))]


def _filled(rows: Sequence[PackedRow], size: int) -> Batch:
    """Stacks rows, padded by empty ones to `size`."""
    S, M = rows[0].tokens.size, len(MODALITIES)
    zeros, weights = np.zeros(S, np.int32), np.zeros(S, np.float32)
    empty = PackedRow(zeros, zeros, zeros - 1, zeros, weights, np.zeros(M, np.float32))
    return stack([*rows, *[empty] * (size - len(rows))])


def _describe(found: ValidationSums, length: int) -> dict[str, Any]:
    line: dict[str, Any] = {"tokens": int(found.targets.sum())}
    of_each = zip(MODALITIES, found.nll, found.correct, found.targets, strict=True)
    for modality, nll, correct, count in of_each:
        line[f"{modality}_loss"] = float(nll / count) if count else None
        line[f"{modality}_accuracy"] = float(correct / count) if count else None
    ranges = itertools.pairwise(position_edges(length))
    sums = zip(found.by_position, found.squares, found.at_position, strict=True)
    line["by_position"] = [
        [*bounds, float(nll / count), int(count), _standard_error(nll, squares, count)]
        for bounds, (nll, squares, count) in zip(ranges, sums, strict=True)
        if count
    ]
    return line


def _standard_error(total: Any, squares: Any, count: Any) -> float | None:
    """Returns the standard error of the mean of `count` values."""
    if count < 2:
        return None
    variance = float(squares / count - (total / count) ** 2) * count / (count - 1)
    return math.sqrt(max(0.0, variance) / count)
