"""Programs of reading and writing as shapes on a mesh, without weights and without devices."""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import AbstractMesh, Mesh, PartitionSpec as P

from lwm.generate.decoding import BURST, burst
from lwm.generate.grammar import VisionGrammar
from lwm.generate.pages import LONG, SHORT
from lwm.generate.slots import Slots
from lwm.model.config import Compute, LlamaConfig
from lwm.model.llama import Llama, _extend_block, check_mesh
from lwm.model.pool import PAGE, PagePool, Place, table_width
from lwm.plan.program import Program, bytes_of_a_device, on, placed, used
from lwm.sharding import ACTS, BATCH, ROW, ROWS, make_mesh, require_divisible

_STOP_PLACES = 8
_OPENING = ((1, 2, 3),)
"""Ids of `<vision>`; which they are changes no program."""


def generation_programs(
    model: LlamaConfig, compute: Compute, mesh: Mesh | AbstractMesh
) -> tuple[Program, Program]:
    """Returns the programs that read a chunk of a prompt in one layer, and that write ids.

    Each group of devices holds one row of all the tokens of the model's context. Weights and cache
    are of the type of the computation.

    Args:
        model: The model.
        compute: How it is computed.
        mesh: The devices.

    Raises:
        UserError: Weights, or tokens of a chunk, do not divide over the mesh.
    """
    check_mesh(model, mesh)
    require_divisible(mesh, "tokens of a chunk", SHORT, ("sp",))
    rows = math.prod(mesh.shape[axis] for axis in BATCH)
    per_device = -(-model.max_context // (PAGE * mesh.shape["sp"])) + 1
    with used(mesh):
        weights = jax.eval_shape(lambda: Llama.init(model, compute, key=jr.key(0)).for_generation())
        pool = jax.eval_shape(lambda: PagePool.empty(model, compute.dtype, per_device=per_device))
    weights, pool = placed(weights, mesh, dtype=jnp.dtype(compute.dtype)), placed(pool, mesh)
    return _reading(weights, pool, rows, mesh), _writing(weights, pool, rows, mesh)


def _reading(weights: Llama, pool: PagePool, rows: int, mesh: Mesh | AbstractMesh) -> Program:
    """Returns the program of one layer, which runs for each; the other layers wait."""
    config, dtype = weights.config, jnp.dtype(weights.compute.dtype)
    assert isinstance(weights.blocks, tuple)
    width = table_width(config.max_context)
    numbers = on(mesh, rows, dtype=jnp.int32, spec=ROW)
    place = Place(on(mesh, rows, width, dtype=jnp.int32, spec=ROWS), numbers, numbers)
    states = on(mesh, rows, LONG, config.dim, dtype=dtype, spec=ACTS)
    turn = on(mesh, rows, LONG, config.head_dim // 2, dtype=jnp.float32, spec=ACTS)
    block, layer = weights.blocks[0], pool.layers[0]
    held = bytes_of_a_device((weights, pool)) - bytes_of_a_device((block, layer))
    given = block, states, (turn, turn), layer, place
    return Program("reading", _extend_block, given, held=held)


def _writing(weights: Llama, pool: PagePool, rows: int, mesh: Mesh | AbstractMesh) -> Program:
    tokens, grammar = weights.config.tokens, None
    if tokens.vision:
        grammar = VisionGrammar(tokens=tokens, opening=_OPENING, tokens_per_frame=1)
    # Its arrays are the host's, but for the marks of ids, which are on one device here.
    slots = Slots(weights, make_mesh(), rows, grammar=grammar, stop_places=_STOP_PLACES)
    seen = jax.tree.map(
        lambda each: on(mesh, *each.shape, dtype=each.dtype, spec=P(None, None)), slots._seen
    )
    given = weights, pool, seen, slots._rows, BURST, slots._inputs
    return Program("decoding", burst, given, {"grammar": grammar})
