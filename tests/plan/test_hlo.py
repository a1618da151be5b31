"""Collectives counted in the text of real programs, on CPU and by TPU's compiler."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from lwm.plan.chips import read_slice
from lwm.plan.hlo import Collective, collectives
from lwm.sharding import make_mesh

LAYERS, TURNS = 5, 3
PARTS = P("sp", None)


def layers(x, weights):
    """Sums and passes on in each layer, and gathers in a loop of each."""

    def layer(x, weight):
        x = jax.lax.psum(x @ weight, "sp")
        x = jax.lax.ppermute(x, "sp", [(i, (i + 1) % 4) for i in range(4)])

        def turn(_, x):
            return jax.lax.all_gather(x, "sp", axis=0, tiled=True)[: len(x)] * 1.5

        return jax.lax.fori_loop(0, TURNS, turn, x), None

    return jax.lax.scan(layer, x, weights)[0]


def text_for(devices):
    mesh = make_mesh("1,1,1,4", devices)
    with jax.set_mesh(mesh):
        mapped = functools.partial(jax.shard_map, out_specs=PARTS, check_vma=False)
        given = (
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
            for shape, spec in (((32, 128), PARTS), ((LAYERS, 128, 128), P(None, None, None)))
        )
        return jax.jit(mapped(layers)).lower(*given).compile().as_text()


def the_counts_are_right(text):
    piece = 8 * 128 * 4
    assert collectives(text) == {
        "all-gather": Collective(LAYERS * TURNS, LAYERS * TURNS * 4 * piece),
        "all-reduce": Collective(LAYERS, LAYERS * piece),
        "collective-permute": Collective(LAYERS, LAYERS * piece),
    }


def test_collectives_in_loops_count_as_often_as_they_run():
    the_counts_are_right(text_for(jax.devices()[:4]))


@pytest.mark.tpu
def test_collectives_of_a_program_for_tpu_count_as_often_as_they_run():
    pytest.importorskip("libtpu")
    the_counts_are_right(text_for(read_slice("v4:2x2x1").devices()))
