"""Rows whose pages lie on several devices: the same logits, bounded memory, no weight is sent."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from lwm.generate.decoding import BURST, burst
from lwm.generate.pages import LONG
from lwm.generate.slots import Slots
from lwm.model.llama import Llama, _extend_block
from lwm.model.pool import PAGE, PagePool, Place, table_width
from lwm.sharding import ACTS, ROW, ROWS, TOKENS, make_mesh, on_mesh

OFFSET = 3
"""Device of the first page, where there are so many."""


def read(model, text, tokens, positions):
    """Returns the logits at some positions of a row that is read in chunks; the last is decoded."""
    mesh = make_mesh(text)
    sp, width = mesh.shape["sp"], table_width(model.config.max_context)
    with jax.set_mesh(mesh):
        model = jax.tree.map(lambda x: jax.device_put(x, on_mesh(mesh, x.sharding.spec)), model)
        model = model.for_generation()
        pool = PagePool.empty(model.config, "float32", per_device=width // sp + 2)

        def put(values, spec):
            return jax.device_put(np.asarray(values, np.int32)[None], on_mesh(mesh, spec))

        table, offset = put(1 + np.arange(width) // sp, ROWS), put(OFFSET % sp, ROW)
        found, end = {}, len(tokens) - 1
        for start in [*range(0, end, LONG), end]:
            part, spec = (tokens[start:], ROWS) if start == end else (tokens[start:end], TOKENS)
            place = Place(table, put(start, ROW), offset)
            states, pool = model.extend(put(part[:LONG], spec), place, pool)
            jax.block_until_ready(states)  # as the engine does: one chunk is in flight
            here = [each for each in positions if start <= each < start + states.shape[1]]
            for each in here:
                state = np.asarray(states)[:, each - start, None]
                state = jax.device_put(state, on_mesh(mesh, P(*ROWS, None)))
                found[each] = np.asarray(model.logits(model.norm(state)))[0, 0]
    return np.stack([found[each] for each in positions])


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(8192, marks=(pytest.mark.slow, pytest.mark.representative)),
        pytest.param(131_072, marks=pytest.mark.slow),
    ],
)
def test_a_long_row_has_the_logits_of_one_device(tiny, init, length):
    config = tiny(
        dim=64, num_layers=2, num_heads=1, num_kv_heads=1, head_dim=64, mlp_dim=128,
        max_context=length + 1, init_std=0.1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, length + 1)
    positions = sorted({*rng.integers(0, length, 64).tolist(), length - 1, length})
    with jax.set_mesh(make_mesh()):
        model = init(config).unstack()
    wanted = read(model, "1,1,1,1", tokens, positions)
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(read(model, "sp=8", tokens, positions), wanted, atol=1e-4)


def first_block(config):
    blocks = Llama.init(config, key=jax.random.key(0)).for_generation().blocks
    assert isinstance(blocks, tuple)
    return blocks[0]


def test_reading_a_chunk_takes_no_more_memory_after_a_million_tokens(tiny):
    mesh, temporaries = make_mesh("sp=8"), []
    for context in (2**17, 2**20):
        config = tiny(num_layers=1, max_context=context)
        with jax.set_mesh(mesh):
            pool = jax.eval_shape(
                partial(PagePool.empty, config, "float32", per_device=context // (8 * PAGE) + 1)
            )
            block = jax.eval_shape(partial(first_block, config))

            def on(*shape, dtype=jnp.float32, spec) -> Any:
                return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

            turn = on(1, LONG, config.head_dim // 2, spec=ACTS)
            table = on(1, table_width(context), dtype=jnp.int32, spec=ROWS)
            place = Place(table, *[on(1, dtype=jnp.int32, spec=ROW)] * 2)
            x = on(1, LONG, config.dim, spec=ACTS)
            program = _extend_block.lower(block, x, (turn, turn), pool.layers[0], place).compile()
        used = program.memory_analysis()
        assert used is not None
        temporaries.append(used.temp_size_in_bytes)
    assert abs(temporaries[1] - temporaries[0]) <= 2**20


def test_decoding_gathers_no_weight(tiny, init):
    config = tiny(dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=256, max_context=1024)
    with jax.set_mesh(mesh := make_mesh("tp=2,sp=4")):
        model = init(config).for_generation()
        least = min(leaf.size // 2 for leaf in jax.tree.leaves(model) if leaf.ndim > 1)
        slots = Slots(model, mesh, 2, grammar=None, stop_places=8)
        pool = PagePool.empty(config, "float32", per_device=4)
        inputs = slots._rows, BURST, slots._inputs
        lowered = burst.lower(model, pool, slots._seen, *inputs, grammar=None)
        text = lowered.compile().as_text() or ""
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    sizes = [np.prod([int(n) for n in each.split(",") if n]) for each in gathered]
    assert sizes, "logits are gathered"
    assert max(sizes) < least
