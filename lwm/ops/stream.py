"""The residual stream of training: states between layers, split over `sp` and over `tp`.

Norms and residual sums work token by token, so each device of `tp` keeps a share of the tokens, and
gathers those of the others where a linear layer needs them (sequence parallelism, Korthikanti et
al. 2022, arXiv 2205.05198). What a layer saves for its backward pass then divides by `tp`, too.
A row is cut into pieces, so that no device holds the gathered states of more than one of them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P, get_abstract_mesh, reshard
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lwm.sharding import ACTS, AXES, BATCH, SHARD, axes_of

Weights = TypeVar("Weights")


@dataclasses.dataclass(frozen=True)
class Stream:
    """Form of the states of rows: pieces × rows × tokens of a piece × width.

    Letters of shapes: P pieces, s tokens of a piece on all devices of `sp`; on one device: b rows
    and c tokens of a piece, of which it holds c / tp between the layers.
    """

    pieces: int
    is_split: bool
    """Tokens are split over `tp`; if False, all devices of `tp` hold the same."""

    @classmethod
    def of(cls, length: int, *, chunk: int | None = None) -> "Stream":
        """Returns the form of rows of so many tokens, with at most `chunk` tokens in a piece."""
        mesh = get_abstract_mesh().shape
        local = length // mesh["sp"]
        parts = mesh["tp"] if local % mesh["tp"] == 0 else 1
        pieces = 1 if chunk is None else min(-(-local // chunk), local // parts)
        while local % (pieces * parts):
            pieces += 1
        return cls(pieces, is_split=parts == mesh["tp"])

    @property
    def spec(self) -> P:
        """Sharding of the states."""
        return P(None, BATCH, ("sp", "tp") if self.is_split else "sp", None)

    def enter(self, x: Float[Array, "B S D"]) -> Float[Array, "P B s D"]:
        """Brings whole rows into this form."""
        cut = jax.shard_map(self.cut, in_specs=ACTS, out_specs=P(None, *ACTS))
        return reshard(cut(reshard(x, ACTS)), self.spec)

    def leave(self, x: Float[Array, "P B s D"]) -> Float[Array, "B S D"]:
        """Inverts `enter`."""
        join = jax.shard_map(self.join, in_specs=P(None, *ACTS), out_specs=ACTS)
        return join(reshard(x, P(None, *ACTS)))

    # What follows works on the arrays of one device, in a region mapped by `region`.

    def cut(self, x: Array) -> Array:
        """Cuts b × (P·c) × … into P × b × c × …."""
        return jnp.moveaxis(x.reshape(len(x), self.pieces, -1, *x.shape[2:]), 1, 0)

    def join(self, x: Array) -> Array:
        """Inverts `cut`."""
        whole = jnp.moveaxis(x, 0, 1)
        return whole.reshape(len(whole), -1, *whole.shape[3:])

    def gather(self, x: Float[Array, "b t D"]) -> Float[Array, "b c D"]:
        """Gathers a piece from all devices of `tp`; its gradient is summed over them once."""
        if not self.is_split or lax.axis_size("tp") == 1:
            return x
        return _by_token(partial(lax.all_gather, axis_name="tp", tiled=True), x)

    def scatter(self, x: Float[Array, "b c D"]) -> Float[Array, "b t D"]:
        """Adds up the contributions of all devices of `tp`; each keeps its share of the tokens."""
        if not self.is_split:
            return lax.psum(x, "tp")
        if lax.axis_size("tp") == 1:
            return x
        return _by_token(partial(lax.psum_scatter, axis_name="tp", tiled=True), x)

    def each(self, run: Callable[..., Any], *xs: Array) -> Any:
        """Applies a function to one piece of each array after the other.

        If there are several, its intermediate results are not saved: the backward pass computes
        them again (Liu and Abbeel 2023, Blockwise Parallel Transformer, arXiv 2305.19370).
        """
        if self.pieces == 1:
            return jax.tree.map(lambda y: y[None], run(*(x[0] for x in xs)))
        again = jax.checkpoint(run)
        return lax.map(lambda pieces: again(*pieces), xs)


def _by_token(send: Callable[[Array], Array], x: Float[Array, "b c D"]) -> Float[Array, "b t D"]:
    """Gathers or scatters tokens as rows of a matrix.

    Of arrays with more axes, XLA for TPUs would send all sums to all devices, to keep a share.
    """
    rows, _, width = x.shape
    sent = send(x.swapaxes(0, 1).reshape(-1, rows * width))
    return sent.reshape(-1, rows, width).swapaxes(0, 1)


def region(
    local: Callable[..., Any],
    weights: Weights,
    *xs: Array,
    in_specs: tuple[P, ...],
    out_specs: Any,
    dtype: DTypeLike,
) -> Any:
    """Calls `local(weights, *xs)` with the arrays of each device; differentiable.

    Args:
        local: Function of whole weights, but for their split over `tp`, and of parts of `xs`.
        weights: A pytree of weights. They are gathered once, in type `dtype`, and their gradients
            are summed over the devices once, in their own type.
        xs: Other arrays.
        in_specs: Their specs.
        out_specs: Specs of what `local` returns.
        dtype: Type of the activations.
    """
    specs = jax.tree.map(_with_idle_axes, weights)

    def run(weights, *xs):
        return local(jax.tree.map(partial(_gather_weight, dtype=dtype), weights, specs), *xs)

    mapped = jax.shard_map(run, in_specs=(specs, *in_specs), out_specs=out_specs)
    return mapped(jax.tree.map(reshard, weights, specs), *map(reshard, xs, in_specs))


def _with_idle_axes(weight: Array) -> P:
    """Returns the spec of a weight, with the axes of size 1 that it lacks.

    A gradient is summed over the axes that are not in the spec, and to sum over one device copies.
    """
    mesh, spec = get_abstract_mesh().shape, jax.typeof(weight).sharding.spec
    first, *others = (axes_of(at) for at in spec)
    used = {*first}.union(*others)
    idle = (axis for axis in AXES if mesh[axis] == 1 and axis not in used)
    return P((*first, *idle), *(names or None for names in others))


def _gather_weight(weight: Array, spec: P, *, dtype: DTypeLike) -> Array:
    split = [axes_of(at) for at in spec]
    # In one order in all processes, which must compile the same program.
    if copies := tuple(axis for axis in AXES if not any(axis in names for names in split)):
        weight = lax.pcast(weight, copies, to="varying")
    for dimension, names in enumerate(split):
        axes = tuple(axis for axis in names if axis in SHARD and lax.axis_size(axis) > 1)
        if axes:
            return _gather(weight, dimension, axes, jnp.dtype(dtype))
    return weight


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(weight, dimension, axes, dtype):
    """Gathers in a low precision; the gradient is summed in the weight's own.

    What is as small is sent as it is: scales of weights of few bits have more digits than bfloat16.
    """
    sent = weight.astype(dtype) if weight.dtype.itemsize > dtype.itemsize else weight
    return lax.all_gather(sent, axes, axis=dimension, tiled=True).astype(weight.dtype)


def _gather_forward(weight, dimension, axes, dtype):
    return _gather(weight, dimension, axes, dtype), None


def _gather_backward(dimension, axes, dtype, _, grad):
    del dtype
    return (lax.psum_scatter(grad, axes, scatter_dimension=dimension, tiled=True),)


_gather.defvjp(_gather_forward, _gather_backward)
