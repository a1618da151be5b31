"""Meshes, the ring and a layer as TPU's compiler sees them, on slices that are not there."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from hlo import computations, transfers
from jax.sharding import PartitionSpec as P

from lwm.errors import UserError
from lwm.model.config import LlamaConfig
from lwm.model.layers import Block, Packing
from lwm.model.rope import rotation
from lwm.ops.mask import Mask
from lwm.ops.ring import ring_attention
from lwm.ops.stream import Stream
from lwm.plan.chips import read_slice
from lwm.plan.program import on, placed
from lwm.sharding import AXES, HEADS, TOKENS, make_mesh
from lwm.tokens import TokenSpace

pytest.importorskip("libtpu")
pytestmark = pytest.mark.tpu

MESHES = {"v4:2x2x1": "1,1,1,4", "v4:2x2x4": "1,2,2,4"}
SIZES = {
    name: dict(zip(AXES, map(int, sizes.split(",")), strict=True)) for name, sizes in MESHES.items()
}
CHUNK = 512
ROWS, LENGTH = 2, 32 * 1024
CONFIG = LlamaConfig(
    tokens=TokenSpace(text=1024),
    dim=1536,
    num_layers=1,
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    mlp_dim=2048,
    max_context=LENGTH,
)


@pytest.fixture(scope="module")
def chips():
    return read_slice("v4:8x8x4").devices()


@pytest.mark.parametrize("sizes", ["1,4,16,4", "1,4,8,8", "2,2,16,4", "1,1,32,8"])
def test_axes_longer_than_a_side_of_the_slice_take_parts_of_others(chips, sizes):
    mesh = make_mesh(sizes, chips)
    assert ",".join(map(str, mesh.devices.shape)) == sizes
    assert {device.id for device in mesh.devices.flat} == {device.id for device in chips}


def test_sizes_that_divide_no_side_of_the_slice_are_refused(chips):
    with pytest.raises(
        UserError, match=r"mesh '1,1,3,1' cannot be laid on 3 of 256 devices TPU v4"
    ):
        make_mesh("1,1,3,1", chips)


@functools.cache
def ring(name):
    """Both passes of the ring, compiled."""
    mesh = make_mesh(MESHES[name], read_slice(name).devices())

    @jax.jit
    def run(q, k, v, dout, index, segments):
        mask = Mask(index, index, segments, segments)
        out, pull = jax.vjp(lambda q, k, v: ring_attention(q, k, v, mask), q, k, v)
        return out, pull(dout)

    with jax.set_mesh(mesh):
        q, k = (
            on(mesh, ROWS, LENGTH, heads, 128, dtype=jnp.bfloat16, spec=HEADS) for heads in (8, 4)
        )
        index = on(mesh, LENGTH, dtype=jnp.int32, spec=P(None))
        segments = on(mesh, ROWS, LENGTH, dtype=jnp.int32, spec=TOKENS)
        return run.lower(q, k, k, q, index, segments).compile().as_text() or ""


@functools.cache
def layer(name):
    """Both passes of a layer, compiled."""
    mesh = make_mesh(MESHES[name], read_slice(name).devices())
    turn = functools.partial(rotation, rope=CONFIG.rope, head_dim=CONFIG.head_dim)

    def run(block, x, packing):
        stream = Stream.of(LENGTH, chunk=CHUNK)
        one = jax.checkpoint(lambda block, x: block(x, turn, packing, stream))
        out, pull = jax.vjp(one, block, x)
        return out, pull(out)

    with jax.set_mesh(mesh):
        stream = Stream.of(LENGTH, chunk=CHUNK)
        shape = stream.pieces, ROWS, LENGTH // stream.pieces, CONFIG.dim
        x = on(mesh, *shape, dtype=jnp.bfloat16, spec=stream.spec)
        block = placed(jax.eval_shape(lambda: Block.init(CONFIG, key=jr.key(0))), mesh)
        packing = placed(jax.eval_shape(lambda: Packing.whole(ROWS, LENGTH)), mesh)
        return jax.jit(run).lower(block, x, packing).compile().as_text() or ""


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("program", [ring, layer])
def test_what_goes_around_the_ring_is_sent_while_tiles_are_worked_on(program, name):
    """Tiles are the loops of attention."""
    sent = 0
    for order in computations(program(name)):
        for start, meanwhile in transfers(order):
            assert "while" in {one.kind for one in meanwhile}, start
            sent += 1
    # Keys, values and their mask; backward first these, then with gradients, then gradients alone.
    # A layer's forward pass is run twice.
    assert sent == (3 if program is ring else 6) + 3 + 5 + 2


@pytest.mark.parametrize("name", MESHES)
def test_no_device_holds_the_wide_states_of_its_tokens(name):
    local = ROWS // SIZES[name]["fsdp"] * LENGTH // SIZES[name]["sp"]
    for order in computations(layer(name)):
        for one in order:
            assert ".remat" not in one.name
            for each in one.results:
                if one.kind.startswith("all-gather"):
                    assert LENGTH // SIZES[name]["sp"] not in each.shape, one
                if one.kind == "constant":
                    assert each.bytes <= 2**20, one
                # Of all arrays in float32, gradients of queries are the largest.
                queries = local * CONFIG.num_heads * CONFIG.head_dim // SIZES[name]["tp"]
                assert each.dtype != "f32" or each.size <= queries < local * CONFIG.dim, one
