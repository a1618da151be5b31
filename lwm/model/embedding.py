"""Lookup of ids in a table whose rows are split over `tp`."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Float, Int

from lwm.model.quantize import QuantizedWeight
from lwm.ops.stream import Stream
from lwm.sharding import SHARD, TOKENS, manual, tokens_spec

_TABLE = P("tp", None)


@functools.partial(jax.jit, static_argnames="dtype")
@jax.named_scope("embedding")
def embed(
    table: Float[Array, "V D"] | QuantizedWeight, tokens: Int[Array, "B S"], *, dtype: str
) -> Float[Array, "B S D"]:
    """Looks up each id; every device of `tp` gets all states."""
    spec = tokens_spec(tokens.shape[1])

    table_spec = P(None, "tp") if isinstance(table, QuantizedWeight) else _TABLE

    def local(table, tokens):
        return lax.psum(_found(table, tokens), "tp")

    mapped = jax.shard_map(local, in_specs=(table_spec, spec), out_specs=P(*spec, None))
    placed = jax.tree.map(lambda leaf: reshard(leaf, table_spec), table)
    return mapped(placed, tokens).astype(dtype)


@jax.named_scope("embedding")
def embed_stream(
    table: Float[Array, "V D"], tokens: Int[Array, "B S"], stream: Stream, *, dtype: str
) -> Float[Array, "P B s D"]:
    """Looks up the ids of rows for training; differentiable in the table."""
    return _embed(reshard(table, P("tp", SHARD)), reshard(tokens, TOKENS), stream, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _embed(table, tokens, stream, dtype):
    def local(table, tokens):
        return stream.each(lambda ids: stream.scatter(_found(table, ids)), stream.cut(tokens))

    mapped = manual(local, (_TABLE, TOKENS), stream.spec)
    return mapped(reshard(table.astype(dtype), _TABLE), tokens)


def _forward(table, tokens, stream, dtype):
    return _embed(table, tokens, stream, dtype), (table, tokens)


def _backward(stream, dtype, saved, grads):
    del dtype
    table, tokens = saved

    def local(table, tokens, grads):
        rows = table.shape[0]

        def add(total, piece):
            ids, grad = piece
            row, here = _own(ids, rows)
            grad = jnp.where(here[..., None], stream.gather(grad), 0)
            return total.at[row].add(grad.astype(jnp.float32)), None

        # Summed in float32: a frequent id adds up thousands of gradients.
        zeros = jnp.zeros((rows, grads.shape[-1]), jnp.float32)
        total, _ = lax.scan(add, zeros, (stream.cut(tokens), grads))
        total = lax.psum(total, "dp")
        return lax.psum_scatter(total, SHARD, scatter_dimension=1, tiled=True)

    mapped = manual(local, (P("tp", SHARD), TOKENS, stream.spec), P("tp", SHARD))
    return mapped(table, tokens, reshard(grads, stream.spec)).astype(table.dtype), None


_embed.defvjp(_forward, _backward)


def _found(
    table: Float[Array, "v D"] | QuantizedWeight, ids: Int[Array, "b c"]
) -> Float[Array, "b c D"]:
    """Looks up the ids of this device's rows of the table; those of others give zeros."""
    if isinstance(table, QuantizedWeight):
        row, here = _own(ids, table.values.shape[1])
        columns = jax.tree.map(lambda leaf: jnp.take(leaf, row, axis=1), table)
        rows = jnp.moveaxis(columns.astype(jnp.float32), 0, -1)
    else:
        row, here = _own(ids, table.shape[0])
        rows = jnp.take(table, row, axis=0)
    return jnp.where(here[..., None], rows, 0)


def _own(ids: Array, rows: int) -> tuple[Array, Array]:
    """Returns the row of each id in this device's part of the table, and whether it is there."""
    row = ids - lax.axis_index("tp") * rows
    here = (row >= 0) & (row < rows)
    return jnp.where(here, row, 0), here
