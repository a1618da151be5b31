"""Attention of new tokens to the pages of their rows on CPUs, by kernels."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lwm.ops.cpu.build import target
from lwm.ops.held import Keys, Values

_TYPES = {
    jnp.dtype(jnp.float32): "float32",
    jnp.dtype(jnp.uint16): "bfloat16",
    jnp.dtype(jnp.int8): "int8",
}
"""Names in those of kernels, by the type in which pages are held (`lwm.ops.held`)."""
Attended = tuple[Float[Array, "B 1 N H"], Float[Array, "B 1 N"], Keys, Values]
Read = tuple[Float[Array, "B S N H"], Float[Array, "B S N"]]


def attend_new(
    plain: Callable[..., Attended],
    q: Float[Array, "B 1 N H"],
    k: Float[Array, "B 1 K H"],
    v: Float[Array, "B 1 K H"],
    keys: Keys,
    values: Values,
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    first: Int[Array, " B"],
    *,
    step: int,
) -> Attended:
    """Attends from one new token of each row, which it also stores.

    Returns `plain(q, k, v, ...)`; on CPUs computed by a kernel, in place.

    Args:
        plain: Stores and attends in plain JAX.
        q: Queries of the new token of each row.
        k: Its keys.
        v: Its values.
        keys: Pages of keys of one device, as `lwm.ops.paged` describes them.
        values: Pages of values.
        pages: Table of each row, with the pages of all devices.
        lengths: Tokens of each row before the new one.
        first: Number, within its row, of the first page that lies here.
        step: Distance to the next one in the row.

    Returns:
        Output, log-sum-exp, and the pages with the new token.
    """
    inputs = q, k, v, keys, values, pages, lengths, first
    name = _kernel("attend", keys)
    if name is None:
        return plain(*inputs)
    return lax.platform_dependent(*inputs, cpu=partial(_call, name, step), default=plain)


def attend_chunk(
    plain: Callable[..., Read],
    q: Float[Array, "B S N H"],
    keys: Keys,
    values: Values,
    pages: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    first: Int[Array, " B"],
    *,
    step: int,
) -> Read:
    """Returns `plain(q, keys, ...)` computed by a kernel, or by `plain` if there is none.

    The kernel multiplies bfloat16 on the processor's matrix units, where it has some, and all else
    in float32.

    Args:
        plain: Attends in plain JAX.
        q: Queries of new tokens, which are stored.
        keys: Pages of keys.
        values: Pages of values.
        pages: Pages of each row that lie here.
        lengths: Tokens of each row before the new ones.
        first: Number, within its row, of the first page that lies here.
        step: Distance to the next one in the row.
    """
    name = _kernel("read", keys)
    if name is None or q.dtype not in (jnp.float32, jnp.bfloat16):
        return plain(q, keys, values, pages, lengths, first)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (q.shape, q.shape[:3])]
    integers = (x.astype(jnp.int32) for x in (pages, lengths, first))
    out, lse = jax.ffi.ffi_call(name, results)(q, keys, values, *integers, step=step)
    return out, lse


def _kernel(does: str, keys: Keys) -> str | None:
    kind = _TYPES.get(keys.dtype)
    return None if kind is None else target(f"{does}_{kind}")


def _call(name, step, q, k, v, keys, values, pages, lengths, first):
    B, _, N, H = q.shape

    def each(x):
        return x[:, 0].astype(jnp.float32)

    call = jax.ffi.ffi_call(
        name,
        (
            jax.ShapeDtypeStruct((B, N, H), jnp.float32),
            jax.ShapeDtypeStruct((B, N), jnp.float32),
            jax.ShapeDtypeStruct(keys.shape, keys.dtype),
            jax.ShapeDtypeStruct(values.shape, values.dtype),
        ),
        input_output_aliases={3: 2, 4: 3},
    )
    integers = (x.astype(jnp.int32) for x in (pages, lengths, first))
    inputs = each(q) * H**-0.5, each(k), each(v), keys, values, *integers
    out, lse, keys, values = call(*inputs, step=step)
    return out[:, None], lse[:, None], keys, values
