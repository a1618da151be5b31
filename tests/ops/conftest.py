"""Counts of the tiles that attention executes, by the plan that it follows itself."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from lwm.ops import blockwise, ring
from lwm.sharding import manual


def count(mask, *, block, key_block=None):
    """Counts the tiles that `fwd` and `bwd` execute, all rows of the batch together."""
    q_side, k_side = blockwise._sides(mask, block, key_block or block)
    full, partly, _ = jax.vmap(jax.vmap(blockwise._plan, (0, None)))(q_side, k_side)
    return jnp.sum(full + partly)


def count_in_ring(mask, *, block):
    """Counts the tiles that each device executes at each step of the ring: [device, step]."""
    whole = P(None, ring.AXIS)

    def local(mask):
        def visit(part, beside=None):
            found = count(part.seen_by(mask), block=block)
            return found if beside is None else (found, beside)

        def add(state, found):
            step, counts = state
            return step + 1, counts.at[step].set(found)

        start = 0, jnp.zeros(lax.axis_size(ring.AXIS), jnp.int32)
        # Only the mask of the keys counts.
        part = ring._Part.own(mask.k_index, mask.k_index, mask)
        return ring._travel(part, start, visit, add)[1][None]

    mapped = manual(local, (ring._mask_specs(whole),), P(ring.AXIS, None))
    return mapped(ring._spread(mask, whole))


@pytest.fixture(scope="session")
def count_tiles():
    return jax.jit(count, static_argnames=("block", "key_block"))


@pytest.fixture(scope="session")
def count_tiles_in_ring():
    return lambda mask, block: jax.jit(partial(count_in_ring, block=block))(mask)
