"""Pages of keys and values: they hold what a forward pass computes, and are never there twice."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lwm.model.config import Compute
from lwm.model.llama import Llama, _extend_block
from lwm.model.pool import PAGE, PagePool, Place, copy_pages, table_width
from lwm.model.quantize import CONTRACTED, QuantizedWeight, quantize_to
from lwm.ops.held import held_size
from lwm.sharding import DEVICES, ROW, ROWS, dotted, make_mesh, on_mesh, tokens_spec

LONG, SHORT = 512, 64
LENGTHS = 552, 300
"""Tokens that two rows have read; the first in a chunk of each size, the second in a padded one."""
WRITTEN = 4
OFFSETS = 3, 0
"""Device of each row's first page, where sp is above 3."""


class TwoRows:
    """Two rows of a pool, read as the engine does: chunks from 0, then token by token."""

    def __init__(self, model: Llama, mesh, *, tables):
        self.model, self.mesh = model, mesh
        self.tables = np.zeros((2, table_width(model.config.max_context)), np.int32)
        for row, pages in enumerate(tables):
            self.tables[row, : len(pages)] = pages
        dtype = model.compute.dtype
        self.pool = PagePool.empty(model.config, dtype, per_device=8)
        # What others left behind must not be seen.
        self.pool = jax.tree.map(lambda x: jnp.full_like(x, _nan(x.dtype)), self.pool)

    def extend(self, tokens, lengths, *, used=(True, True)):
        """Reads more of both rows, or of one beside a slot without a row; returns the logits."""
        on = np.array(used)
        place = Place(
            self.put(np.where(on[:, None], self.tables, 0), ROWS),
            self.put(np.where(on, lengths, 0), ROW),
            self.put(np.where(on, OFFSETS, 0), ROW),
        )
        ids = self.put(tokens, tokens_spec(tokens.shape[1]))
        states, self.pool = self.model.extend(ids, place, self.pool)
        return np.asarray(logits(self.model, states))

    def put(self, value, spec):
        return jax.device_put(np.asarray(value, np.int32), on_mesh(self.mesh, spec))


@jax.jit
def logits(model: Llama, states):
    return model.logits(model.norm(states))


def _nan(dtype):
    return 0x7FC0 if dtype == jnp.uint16 else jnp.nan


def read_and_write(model, mesh, tokens, tables):
    """Yields the logits of parts of rows, with the position of the first of each part."""
    rows = TwoRows(model, mesh, tables=tables)
    padded = tokens[:, :LONG].copy()
    padded[1, LENGTHS[1] :] = 7
    long = rows.extend(padded, (0, 0))
    yield (0, 0), (long[0], long[1, : LENGTHS[1]])
    rest = np.full((2, SHORT), 7)
    rest[0, : LENGTHS[0] - LONG] = tokens[0, LONG : LENGTHS[0]]
    short = rows.extend(rest, (LONG, 0), used=(True, False))
    yield (LONG, 0), (short[0, : LENGTHS[0] - LONG], long[1, :0])
    for step in range(WRITTEN):
        at = [length + step for length in LENGTHS]
        both = rows.extend(tokens[[0, 1], at][:, None], at)
        yield at, (both[0], both[1])


def random_tokens():
    return np.random.default_rng(0).integers(0, 256, (2, LENGTHS[0] + WRITTEN))


def in_eight_bits(model: Llama) -> Llama:
    """Quantises the weights of a model on one device."""

    def leaf(path, weight):
        name = re.sub(r"^blocks\.\d+\.", "", dotted(path))
        contracted = CONTRACTED.get(name)
        if contracted is None:
            return weight
        turned = np.asarray(weight).T if name == "embedding" else np.asarray(weight)
        parts = quantize_to(8, turned, contracted)
        # Groups stay whole.
        split = zip(weight.sharding.spec, parts.scale.shape, strict=True)
        spec = P(*(at if size > 1 else None for at, size in split))
        whole = on_mesh(weight.sharding.mesh, spec)
        return QuantizedWeight(*jax.tree.map(lambda part: jax.device_put(part, whole), parts))

    return jax.tree.map_with_path(leaf, model.unstack())


def in_bfloat16(model: Llama) -> Llama:
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    return dataclasses.replace(half, compute=Compute(dtype="bfloat16"))


forward = jax.jit(lambda model, *given: model(*given))


def largest_error(model, mesh, tokens, exact, tables):
    """Compares all parts of rows that are read and written with whole ones, by norm."""
    errors = []
    for starts, parts in read_and_write(model.unstack(), mesh, tokens, tables):
        for row, (start, part) in enumerate(zip(starts, parts, strict=True)):
            if len(part):
                want = exact[row, start : start + len(part)]
                errors.append(np.linalg.norm(part - want) / np.linalg.norm(want))
    assert len(errors) == 3 + 2 * WRITTEN
    return max(errors)


SCATTERED = [3, 1, 6], [5, 2]


SLOW = pytest.mark.slow, pytest.mark.representative


@pytest.mark.parametrize(
    ("text", "tables", "change"),
    [
        ("1,1,1,1", SCATTERED, Llama.unstack),
        ("1,2,2,1", ([3, 1, 6], [1, 2]), Llama.unstack),
        pytest.param("2,1,4,1", ([3, 1, 6], [3, 6]), Llama.unstack, marks=SLOW),
        ("1,1,2,4", ([3, 3, 1], [2, 7]), Llama.for_generation),
        ("1,1,1,1", SCATTERED, in_eight_bits),
    ],
)
def test_chunks_and_single_tokens_are_as_one_forward_pass(tiny, init, place, text, tables, change):
    """Pages are numbered on each device: rows of two devices may have the same ones."""
    config, tokens = tiny(num_heads=16, num_kv_heads=4, max_context=1024), random_tokens()
    mesh = make_mesh(text)
    with jax.set_mesh(mesh):
        model = change(init(config))
        whole = np.asarray(forward(model, *place(mesh, tokens)))
        assert largest_error(model, mesh, tokens, whole, tables) < 1e-5


def test_bfloat16_is_near_float32(mesh, tiny, init, place):
    config, tokens = tiny(num_heads=16, num_kv_heads=4, max_context=1024), random_tokens()
    model = init(config)
    exact = np.asarray(forward(model, *place(mesh, tokens)))
    half = in_bfloat16(model)
    rounded = np.asarray(forward(half, *place(mesh, tokens)))
    assert np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 2e-2
    assert largest_error(half, mesh, tokens, rounded, SCATTERED) < 2e-2


def counted(config, mesh, *, per_device):
    """Returns a pool in which every number differs, and its pages device by device."""
    pool = PagePool.empty(config, "float32", per_device=per_device)
    pool = jax.tree.map(
        lambda x: jax.device_put(np.arange(x.size, dtype=np.float32).reshape(x.shape), x.sharding),
        pool,
    )
    return pool, pages_of(pool, per_device)


def pages_of(pool, per_device):
    """Copies the arrays of a pool, with an axis for the groups of devices."""
    return [np.array(x).reshape(-1, per_device, *x.shape[1:]) for x in jax.tree.leaves(pool.layers)]


@pytest.mark.parametrize("text", ["1,1,1,1", "2,1,2,1", "1,2,1,2"])
def test_a_pool_that_grows_keeps_its_pages_and_is_never_there_twice(tiny, text):
    mesh = make_mesh(text)
    with jax.set_mesh(mesh):
        pool, before = counted(tiny(), mesh, per_device=3)
        assert pool.per_device == 3
        grown = pool.enlarged(5)
        assert grown.per_device == 5
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(pool))
        for old, new in zip(before, pages_of(grown, 5), strict=True):
            np.testing.assert_array_equal(new[:, :3], old)
            assert (new[:, 3:] == 0).all()
        for leaf in jax.tree.leaves(grown):
            assert leaf.sharding.shard_shape(leaf.shape)[0] == 5
        assert grown.enlarged(4) is grown


@pytest.mark.parametrize("text", ["1,1,1,1", "2,1,2,1", "1,2,1,2"])
def test_each_device_copies_a_page_of_its_own(tiny, text):
    mesh = make_mesh(text)
    parts = mesh.size // mesh.shape["tp"]
    sources, targets = np.array([1, 0, 3, 2])[:parts], np.array([2, 0, 1, 3])[:parts]
    with jax.set_mesh(mesh):
        pool, before = counted(tiny(), mesh, per_device=4)
        placed = [
            jax.device_put(each.astype(np.int32), on_mesh(mesh, DEVICES))
            for each in (sources, targets)
        ]
        copied = copy_pages(pool, *placed)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(pool))
        for old, new in zip(before, pages_of(copied, 4), strict=True):
            for device, (source, target) in enumerate(zip(sources, targets, strict=True)):
                old[device, target] = old[device, source]
            np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("size", [1, SHORT, LONG])
@pytest.mark.parametrize("held", ["float32", "bfloat16", "int8"])
def test_no_layer_copies_its_pages(mesh, tiny, init, size, held):
    """Each program writes into the pages that it is given."""
    config, per_device = tiny(num_layers=1, num_heads=4, num_kv_heads=4, max_context=1024), 513
    pool = PagePool.empty(config, held, per_device=per_device)
    dtype = "float32" if held == "int8" else held
    block = jax.tree.map(lambda leaf: leaf.astype(dtype), init(config).unstack().blocks[0])
    states = P(*tokens_spec(size), None)
    x = jnp.zeros((2, size, config.dim), dtype, out_sharding=states)
    turn = jnp.zeros((2, size, config.head_dim // 2), out_sharding=states)
    place = Place(
        jnp.zeros((2, table_width(1024)), jnp.int32, out_sharding=ROWS),
        *[jnp.zeros(2, jnp.int32, out_sharding=ROW)] * 2,
    )
    layer = pool.layers[0]
    held_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(layer))
    used = _extend_block.lower(block, x, (turn, turn), layer, place).compile().memory_analysis()
    assert used is not None
    each = held_size(8, jnp.dtype(held)) * jnp.dtype(held).itemsize
    assert held_bytes == 2 * per_device * 4 * each * PAGE
    assert used.alias_size_in_bytes == held_bytes
    assert used.temp_size_in_bytes < held_bytes / 2


def test_a_table_holds_the_context_and_the_padding_of_a_chunk():
    for context, width in ((1, 2), (256, 2), (257, 3), (1024, 5)):
        assert table_width(context) == width
