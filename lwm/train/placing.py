"""Placement of batches on a mesh; each process holds some of the rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lwm.data.example import Batch
from lwm.ops.layout import Layout, order
from lwm.sharding import ROWS, TOKENS, on_mesh, require_batch, require_divisible


def own_rows(mesh: Mesh, rows: int) -> list[int]:
    """Returns the rows of a batch that the devices of this process hold, at least in part.

    Raises:
        UserError: The rows do not divide over the mesh.
    """
    require_divisible(mesh, "rows of the batch", rows, ("dp", "fsdp"))
    held = on_mesh(mesh, ROWS).addressable_devices_indices_map((rows, 1))
    return sorted({row for at in held.values() if at for row in range(rows)[at[0]]})


def shard_batch(
    batches: Batch, mesh: Mesh, layout: Layout, *, rows: int
) -> tuple[Batch, jax.Array]:
    """Permutes rows into the sp layout and shards them; also returns the permutation.

    Args:
        batches: Batches along a leading axis, with the rows that `own_rows` names.
        mesh: The devices.
        layout: Layout of rows over `sp`.
        rows: Rows of a batch, with those of other processes.

    Raises:
        UserError: Rows or tokens do not divide over the mesh.
    """
    count, _, length = batches.tokens.shape
    require_batch(mesh, rows=rows, length=length)
    index = order(layout, length, mesh.shape["sp"])
    local = {row: place for place, row in enumerate(own_rows(mesh, rows))}

    def put(x: np.ndarray, spec: Any) -> jax.Array:
        def part(at: tuple[slice, ...] | None) -> np.ndarray:
            assert at is not None
            held = [local[row] for row in range(rows)[at[1]]]
            return x[at[0], held[0] : held[-1] + 1, at[2]]

        sharding = on_mesh(mesh, type(spec)(None, *spec))
        return jax.make_array_from_callback((count, rows, x.shape[-1]), sharding, part)

    *fields, counts = batches
    placed = [put(np.ascontiguousarray(field[..., index]), TOKENS) for field in fields]
    return Batch._make([*placed, put(counts, ROWS)]), jnp.asarray(index)
