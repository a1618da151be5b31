"""The residual stream: pieces of rows, and regions in which linear layers gather them."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P, reshard

from lwm.ops.stream import Stream, region
from lwm.sharding import SHARD, make_mesh


@pytest.mark.parametrize(
    ("mesh", "chunk", "pieces", "is_split"),
    [
        ("1,2,2,2", None, 1, True),
        ("1,2,2,2", 12, 1, True),
        ("1,2,2,2", 5, 3, True),
        ("1,2,2,2", 1, 6, True),
        ("1,1,1,1", 5, 6, True),
        ("2,1,1,4", 4, 2, True),
        ("1,1,5,1", 12, 2, False),
    ],
)
def test_rows_are_cut_into_equal_pieces_of_shares(mesh, chunk, pieces, is_split):
    rows = jr.normal(jr.key(0), (4, 24, 3))
    with jax.set_mesh(make_mesh(mesh)):
        stream = Stream.of(24, chunk=chunk)
        assert (stream.pieces, stream.is_split) == (pieces, is_split)
        states = stream.enter(rows)
        assert states.shape == (pieces, 4, 24 // pieces, 3)
        assert jax.typeof(states).sharding.spec == stream.spec
        np.testing.assert_array_equal(stream.leave(states), rows)


@pytest.mark.parametrize("mesh", ["1,1,1,1", "2,2,2,1", "1,2,1,4", "1,1,5,1"])
def test_a_region_has_the_gradients_of_whole_products(mesh):
    keys = jr.split(jr.key(0), 4)
    x, dout = (jr.normal(key, (4, 24, 16)) for key in keys[:2])
    weights = jr.normal(keys[2], (16, 40)), jr.normal(keys[3], (40, 16)), jnp.ones(16)

    def plain(weights, x):
        into, out, scale = weights
        return jnp.tanh((x * scale) @ into) @ out

    def local(weights, x, stream):
        into, out, scale = weights
        return stream.each(
            lambda x: stream.scatter(jnp.tanh(stream.gather(x * scale) @ into) @ out), x
        )

    @jax.jit
    def mapped(weights, x):
        stream = Stream.of(24, chunk=6)
        states = stream.enter(x)

        def run(weights, x):
            return local(weights, x, stream)

        in_specs, kind = (stream.spec,), x.dtype
        done = region(run, weights, states, in_specs=in_specs, out_specs=stream.spec, dtype=kind)
        return stream.leave(done)

    out, pull = jax.vjp(plain, weights, x)
    wanted = out, *pull(dout)
    with jax.set_mesh(make_mesh(mesh)):
        specs = P(SHARD, "tp"), P("tp", SHARD), P(None)
        placed = tuple(map(reshard, weights, specs))
        out, pull = jax.vjp(mapped, placed, x)
        found = out, *pull(reshard(dout, jax.typeof(out).sharding.spec))
    for one, same in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, same, atol=2e-5 * float(np.abs(one).max()))
