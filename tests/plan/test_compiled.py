"""Answers of the compiler about a program: bytes of a device, or why there is none."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.sharding import PartitionSpec as P

from lwm.model.llama import Llama
from lwm.plan.chips import read_slice
from lwm.plan.compiled import Compiled, Refused, compile_program
from lwm.plan.program import Program, on, used
from lwm.sharding import make_mesh


def doubled(mesh, rows, *, held=0):
    """Doubles rows that are split in four."""
    x = on(mesh, rows, 1024, dtype=jnp.float32, spec=P("sp", None))
    return Program("double", jax.jit(lambda x: 2 * x), (x,), held=held)


def test_bytes_are_those_of_one_device():
    mesh = make_mesh("1,1,1,4")
    found = compile_program(doubled(mesh, 4096, held=10**9), mesh)
    assert isinstance(found, Compiled)
    assert found.arguments == 2**22
    assert found.temporaries >= 2**22, "the result"
    assert found.peak is not None
    assert found.peak >= 10**9 + 2**23
    assert found.collectives == {}


@pytest.mark.tpu
def test_a_program_that_does_not_fit_a_chip_is_refused_in_one_line():
    pytest.importorskip("libtpu")
    mesh = make_mesh("1,1,1,4", read_slice("v4:2x2x1").devices())
    found = compile_program(doubled(mesh, 2**24), mesh)
    assert isinstance(found, Refused)
    assert found.reason.startswith("Ran out of memory")
    assert "30.75G" in found.reason
    assert "\n" not in found.reason


@pytest.mark.tpu
def test_first_weights_are_made_where_they_lie(tiny):
    """No device makes the others' part: of large models it would not fit."""
    pytest.importorskip("libtpu")
    mesh = make_mesh("1,1,2,2", read_slice("v4:2x2x1").devices())
    model = tiny(dim=1024, mlp_dim=4096, num_layers=4)
    init = Program("init", jax.jit(lambda: Llama.init(model, key=jr.key(0))), ())
    with used(mesh):
        whole = sum(4 * leaf.size for leaf in jax.tree.leaves(init.traced()))
    found = compile_program(init, mesh)
    assert isinstance(found, Compiled)
    assert found.temporaries < whole / 2
