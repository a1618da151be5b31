"""Products with weights that stay as small as they are stored, on CPUs.

XLA would write the whole weight in float32 first. These kernels widen it in registers, for many
rows in pieces, so that the time of few rows is that of reading it. Activations are float32, and a
row's result does not depend on others.
"""

from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P, get_abstract_mesh, reshard
from jaxtyping import Array, Float, Int8, Shaped, UInt8

from lwm.ops.cpu.build import target
from lwm.sharding import SHARD, axes_of, manual

MOST_ROWS = 16
"""With more rows, XLA multiplies weights that are not of few bits."""
_KINDS = "float32", "bfloat16", "int8", "uint8"
"""Types of stored numbers for which there are kernels; a byte without a sign holds two."""


def multiply_stored(
    plain: Callable[..., Float[Array, "B S *O"]],
    x: Float[Array, "B S *C"],
    weight: Float[Array, "..."] | Int8[Array, "..."] | UInt8[Array, "..."],
    *scales: Shaped[Array, "..."],
    transposed: bool = False,
    out_sharding: P | None = None,
) -> Float[Array, "B S *O"]:
    """Returns `plain(x, weight, *scales)`; on CPUs computed by a kernel.

    Products of many rows are left to XLA, unless the weight is of few bits.

    Args:
        plain: Multiplies in plain JAX.
        x: Activations.
        weight: Of shape `*C *O`, or `*O *C` if transposed.
        scales: The other arrays of a `lwm.model.quantize.QuantizedWeight`, in their order.
        transposed: As in `lwm.model.linear.linear`.
        out_sharding: Sharding of the result, if it does not follow from the inputs.
    """
    inputs = x, weight, *scales
    name = _target(x, weight, scales, transposed)
    if name is None:
        return plain(*inputs)

    def kernel(*inputs):
        y = _sharded(name, transposed, *inputs)
        dtype, spec = out.dtype, jax.typeof(y).sharding.spec
        is_placed = out_sharding is None or get_abstract_mesh().empty or spec == out_sharding
        return (y if is_placed else reshard(y, out_sharding)).astype(dtype)

    out = jax.eval_shape(plain, *inputs)

    @jax.custom_vjp
    def multiply(*inputs):
        return lax.platform_dependent(*inputs, cpu=kernel, default=plain)

    def backward(saved, dy):
        return jax.vjp(plain, *saved)[1](dy)

    multiply.defvjp(lambda *inputs: (multiply(*inputs), inputs), backward)
    return multiply(*inputs)


def _target(x: Array, weight: Array, scales: tuple[Array, ...], transposed: bool) -> str | None:
    # In the region of one device, as in training, weights are gathered and cast at each use.
    if str(weight.dtype) not in _KINDS or get_abstract_mesh().manual_axes:
        return None
    if not scales and _rows_of_a_device(x) > MOST_ROWS:
        return None
    if scales and not _keeps_groups(x, scales[0]):
        return None
    return target("product_rows" if transposed else "product_columns")


def _keeps_groups(x: Array, scale: Array) -> bool:
    """Returns whether no group of weights that share a scale is split over devices."""
    mesh = get_abstract_mesh()
    if mesh.empty:
        return True
    split = zip(jax.typeof(x).sharding.spec[2:], scale.shape, strict=False)
    return all(size == 1 or size % _size(mesh, (at,)) == 0 for at, size in split)


def _rows_of_a_device(x: Array) -> int:
    mesh = get_abstract_mesh()
    axes = () if mesh.empty else _axes(jax.typeof(x).sharding.spec[:2])
    return x.shape[0] * x.shape[1] // prod(mesh.shape[axis] for axis in axes)


def _size(mesh: Any, spec: Iterable[Any]) -> int:
    return prod(mesh.shape[axis] for axis in _axes(spec))


def _axes(spec: Iterable[Any]) -> tuple[str, ...]:
    return tuple(axis for at in spec for axis in axes_of(at))


def _sharded(name: str, transposed: bool, x: Array, weight: Array, *scale: Array) -> Array:
    """Calls the kernel on each device, with its part of the weight."""
    summed = x.ndim - 2
    call = partial(_call, name, transposed)
    if get_abstract_mesh().empty:
        return call((), x, weight, *scale)
    spec = jax.typeof(x).sharding.spec
    rows, inner = tuple(spec[:2]), tuple(spec[2:])
    # Weights are gathered where rows are split over the same axes, as XLA would do.
    taken = {*_axes(spec), *SHARD}
    own = tuple(jax.typeof(weight).sharding.spec)
    outer = own[: weight.ndim - summed] if transposed else own[summed:]
    outer = tuple(None if taken.intersection(_axes((at,))) else at for at in outer)
    parts = P(*outer, *inner) if transposed else P(*inner, *outer)
    # A scale has size 1 where it is shared.
    scales = [
        P(*(at if size > 1 else None for at, size in zip(parts, each.shape, strict=True)))
        for each in scale
    ]
    inputs = (x, reshard(weight, parts), *map(reshard, scale, scales))
    mapped = manual(partial(call, _axes(inner)), (spec, parts, *scales), P(*rows, *outer))
    return mapped(*inputs)


def _call(
    name: str, transposed: bool, axes: tuple[str, ...], x: Array, weight: Array, *scale: Array
) -> Array:
    """Multiplies one device's part; sums over the devices of `axes`."""
    summed = x.ndim - 2
    outer = weight.shape[: weight.ndim - summed] if transposed else weight.shape[summed:]
    rows, width = prod(x.shape[:2]), prod(outer)
    call = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct((rows, width), jnp.float32))
    flat = (width, -1) if transposed else (-1, width)
    y = call(
        x.reshape(rows, -1).astype(jnp.float32),
        weight.reshape(flat),
        *(each.reshape(-1, width) for each in scale),
    )
    y = y.reshape(*x.shape[:2], *outer)
    return lax.psum(y, axes) if axes else y
