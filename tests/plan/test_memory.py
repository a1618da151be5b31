"""What a model needs: exactly what its arrays take, and no less than XLA's programs do."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lwm import devices
from lwm.convert.names import HUGGING_FACE, dimensions
from lwm.convert.weights import build_llama
from lwm.devices import Machine, free_bytes, host_memory
from lwm.errors import UserError
from lwm.generate.decoding import BURST, burst
from lwm.generate.pages import LONG, SHORT
from lwm.generate.slots import Slots
from lwm.model.config import BITS, Compute, Storage, compute_dtype, preset
from lwm.model.llama import _extend_block, embed
from lwm.model.pool import PAGE, PagePool, Place, table_width
from lwm.plan import memory
from lwm.plan.memory import CHUNK, inference_need, require_divisible_weights
from lwm.sharding import ACTS, BATCH, ROW, ROWS, TOKENS, make_mesh
from lwm.tokens import TokenSpace

VARIANTS = {
    "plain": {},
    "grouped, bias, norms": dict(num_kv_heads=4, qkv_bias=True, qk_norm=True),
    "tied, vision": dict(tie_embeddings=True, tokens=TokenSpace(text=300, vision=90, codes=80)),
    "bfloat16": dict(num_kv_heads=4),
}
STORED: dict[str, Storage] = {"tied, vision": "bfloat16", "bfloat16": "bfloat16"}
MESHES = "1,1,1,1", "1,2,2,1", "2,1,4,1", "1,2,2,2"


def sizes(mesh):
    dp, fsdp, tp, sp = mesh.devices.shape
    return dp, fsdp, tp, sp


def build(config, mesh, dtype):
    """Loads a model of zeros, as any other is loaded."""
    lacks = ["lm_head.weight"] * config.tie_embeddings
    lacks += [".bias"] * (not config.qkv_bias)
    lacks += ["q_norm.weight", "k_norm.weight"] * (not config.qk_norm)
    sizes = dimensions(config) | {"V": config.tokens.size}
    tensors = {
        layout.name.replace("*", str(layer)): np.zeros(layout.shape(sizes), np.float32)
        for layout in HUGGING_FACE.values()
        for layer in range(config.num_layers)
        if not layout.name.endswith(tuple(lacks))
    }
    compute = Compute(dtype=compute_dtype(dtype))
    return build_llama(
        config, tensors, HUGGING_FACE, mesh=mesh, compute=compute, bits=BITS.get(dtype)
    )


def bytes_of_a_device(tree):
    """Adds up what the first device holds, and sees to it that the others hold as much."""
    held = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    (count,) = set(held.values())
    return count


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("text", MESHES)
def test_weights_are_exact(tiny, variant, text):
    config, mesh = tiny(**VARIANTS[variant]), make_mesh(text)
    for dtype in (STORED.get(variant, "float32"), "int8", "int4"):
        need = inference_need(config, context=700, mesh=sizes(mesh), dtype=dtype)
        assert need.weights == bytes_of_a_device(build(config, mesh, dtype))


def pages_for(context, rows, mesh):
    """Returns the pages of each device that hold so many rows, page 0 included."""
    groups = mesh.shape["dp"] * mesh.shape["fsdp"]
    return -(-rows // groups) * -(-context // (PAGE * mesh.shape["sp"])) + 1


@pytest.mark.parametrize(("text", "rows"), [("1,1,1,1", 3), ("1,2,2,1", 3), ("2,1,2,2", 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_cache_is_exact(tiny, text, rows, dtype):
    config, mesh = tiny(num_kv_heads=4), make_mesh(text)
    with jax.set_mesh(mesh):
        pool = PagePool.empty(config, dtype, per_device=pages_for(700, rows, mesh))
    need = inference_need(config, context=700, rows=rows, mesh=sizes(mesh), cache=dtype)
    assert need.cache == bytes_of_a_device(pool)
    if dtype != "int8":  # weights in eight bits have keys and values in bfloat16
        usual = inference_need(config, context=700, rows=rows, mesh=sizes(mesh), dtype=dtype)
        assert usual.cache == need.cache


def measure(config, mesh, *, rows, context, dtype):
    """Returns the most that a program of generation holds besides weights and cache."""

    def on(shape, dtype, spec) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    model, D = build(config, mesh, dtype), config.dim
    wide, groups = model.compute.dtype, math.prod(mesh.shape[axis] for axis in BATCH)
    turn = on((groups, LONG, config.head_dim // 2), jnp.float32, ACTS)
    x, ids = on((groups, LONG, D), wide, ACTS), on((groups, LONG), jnp.int32, TOKENS)
    table = on((groups, table_width(config.max_context)), jnp.int32, ROWS)
    place = Place(table, *[on((groups,), jnp.int32, ROW)] * 2)
    slots = Slots(model, mesh, rows, grammar=None, stop_places=8)
    assert isinstance(model.blocks, tuple)
    with jax.set_mesh(mesh):
        pool = PagePool.empty(config, wide, per_device=pages_for(context, rows, mesh))
        programs = (
            embed.lower(model.embedding, ids, dtype=wide),
            _extend_block.lower(model.blocks[0], x, (turn, turn), pool.layers[0], place),
            burst.lower(model, pool, slots._seen, slots._rows, BURST, slots._inputs, grammar=None),
        )
        used = [each for one in programs if (each := one.compile().memory_analysis())]
    assert len(used) == len(programs)
    new = [each.output_size_in_bytes - each.alias_size_in_bytes for each in used]
    held = [each.temp_size_in_bytes + more for each, more in zip(used, new, strict=True)]
    held[1] += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    # The loop writes into the pool that it is given.
    assert used[2].alias_size_in_bytes >= bytes_of_a_device(pool)
    return max(held)


SIZES = dict(dim=512, head_dim=64, mlp_dim=1408, tokens=TokenSpace(text=4000))
CASES = [
    ("1,1,1,1", "float32", dict(num_kv_heads=2, qkv_bias=True, qk_norm=True)),
    ("1,1,1,1", "bfloat16", dict(tie_embeddings=True)),
    ("1,1,4,1", "bfloat16", {}),
    ("1,2,2,1", "bfloat16", dict(num_layers=3)),
    ("1,1,1,1", "int8", dict(num_layers=4)),
    ("1,2,2,1", "int8", dict(num_layers=4)),
    ("1,1,1,1", "int4", dict(num_layers=4)),
    ("1,1,2,4", "bfloat16", {}),
]


@pytest.mark.parametrize(("text", "dtype", "changes"), CASES)
def test_activations_are_at_least_what_xla_needs_and_not_twice_that(tiny, text, dtype, changes):
    """On a CPU: the programs are those that run, of models large enough to tell the parts."""
    config, mesh = tiny(**SIZES | changes), make_mesh(text)
    measured = measure(config, mesh, rows=2, context=2048, dtype=dtype)
    given = dict(context=2048, rows=2, mesh=sizes(mesh), dtype=dtype)
    need = inference_need(config, **given, platform="cpu")
    assert measured <= need.activations <= 2 * measured


def test_a_chunk_is_what_the_engine_reads():
    assert (CHUNK, memory.SHORT) == (LONG, SHORT)


def test_seven_billion_weights():
    """13.48 GB of text model in bfloat16, and half a MiB of cache a token, by hand."""
    config = preset("7b")
    need = inference_need(config, context=2**20, mesh=(1, 1, 1, 1), dtype="bfloat16")
    assert need.weights == 2 * 6_738_415_616
    assert need.cache == (2**20 + PAGE) * 2 * 32 * 4096 * 2
    assert 2 * 32 * 4096 * 2 == 512 * 1024
    split = inference_need(config, context=2**20, mesh=(1, 1, 32, 1), dtype="bfloat16")
    norms = 2 * 65 * 4096
    assert split.weights == (need.weights - norms) // 32 + norms
    assert need.total == need.weights + need.cache + need.activations


def test_what_grows_with_what(tiny):
    def need(*, context=4096, rows=2, lane=None, mesh=(1, 1, 1, 1), dtype: Storage = "float32"):
        given = dict(context=context, rows=rows, lane=lane, dtype=dtype, platform="cpu")
        return inference_need(tiny(), mesh=mesh, **given)

    assert need(context=8192).cache > 1.9 * need().cache
    page = need(rows=4).cache - 2 * (need(rows=4).cache - need().cache)
    assert page == inference_need(tiny(), context=0, mesh=(1, 1, 1, 1)).cache
    # Prompts are read one by one, and rows are decoded as many together as they are.
    assert need(context=2**20).activations == need().activations
    assert need(rows=3).activations == need().activations < need(rows=5000).activations
    assert need(lane=5000).activations == need(rows=5000).activations
    assert need(lane=5000).cache == need().cache
    assert need(rows=2, mesh=(2, 1, 1, 1)).cache == need(rows=1).cache
    assert need(mesh=(1, 1, 4, 1)).weights < need().weights / 3
    assert need(dtype="int8").weights < need().weights / 2


def test_eight_bits_save_memory_on_a_cpu_that_has_kernels(monkeypatch):
    def need(dtype: Storage):
        mesh = 1, 1, 1, 1
        return inference_need(preset("7b"), context=512, mesh=mesh, dtype=dtype, platform="cpu")

    assert need("int8").total < need("float32").total / 2.5
    # XLA widens all layers before it writes.
    monkeypatch.setenv("LWM_CPU_KERNELS", "0")
    assert need("int8").total > need("float32").total


def test_a_mesh_that_does_not_divide_is_refused(tiny):
    with pytest.raises(UserError, match=r"wq has a dimension of 8, which does not divide by tp 3"):
        require_divisible_weights(tiny(tokens=TokenSpace(text=384), mlp_dim=96), (1, 1, 3, 1))
    with pytest.raises(UserError, match=r"dimension of 32, .* by fsdp 3 × sp 1"):
        inference_need(tiny(), context=512, mesh=(1, 3, 1, 1))


def test_a_need_is_had_without_a_device(tiny, monkeypatch):
    def refuse(*_):
        raise AssertionError("a device was looked for")

    monkeypatch.setattr(jax, "devices", refuse)
    config = tiny(dim=64, num_heads=32, num_kv_heads=32)
    assert inference_need(config, context=2**20, mesh=(16, 1, 32, 1)).total > 0


def meminfo(root, available):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:  {available} kB\n")


def test_memory_of_the_host(tmp_path):
    assert host_memory(tmp_path) is None
    meminfo(tmp_path, 1000)
    assert host_memory(tmp_path) == 1000 * 1024


@pytest.mark.parametrize(
    ("line", "folder", "names", "stat"),
    [
        ("0::/a/b", "sys/fs/cgroup/a", ("memory.max", "memory.current"), "inactive_file"),
        (
            "5:cpu,memory:/a",
            "sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            "total_inactive_file",
        ),
        (
            "0::/a b.scope",
            "sys/fs/cgroup/a b.scope",
            ("memory.max", "memory.current"),
            "inactive_file",
        ),
    ],
)
def test_a_limit_above_a_process_bounds_it(tmp_path, line, folder, names, stat):
    meminfo(tmp_path, 1000)
    (tmp_path / "proc/self/cgroup").write_text(f"{line}\n")
    assert host_memory(tmp_path) == 1000 * 1024
    group = tmp_path / folder
    group.mkdir(parents=True)
    (group / names[0]).write_text("max\n")
    (group / names[1]).write_text("70000\n")
    assert host_memory(tmp_path) == 1000 * 1024
    (group / names[0]).write_text("100000\n")
    assert host_memory(tmp_path) == 30_000
    (group / "memory.stat").write_text(f"{stat} 20000\nother 5\n")
    assert host_memory(tmp_path) == 50_000
    (group / names[1]).write_text("200000\n")
    assert host_memory(tmp_path) == 0


def test_virtual_devices_share_one_memory_with_the_program(monkeypatch):
    monkeypatch.setattr(devices, "host_memory", lambda: 8_500_000_000)
    here = devices.machine()
    assert (here.count, here.platform, here.is_shared) == (len(jax.devices()), "cpu", True)
    assert (here.room(1), here.room(8)) == (8_000_000_000, 1_000_000_000)
    monkeypatch.setattr(devices, "host_memory", lambda: None)
    assert devices.machine().room(1) is None


def test_devices_with_memory_of_their_own_do_not_share_it():
    machine = Machine(count=2, memory=70, platform="gpu")
    assert machine.room(1) == machine.room(2) == machine.room(8) == 70
    assert machine.without(5, 2).room(2) == 75
    shared = dataclasses.replace(machine, is_shared=True)
    assert (shared.room(2), shared.without(5, 2).room(2)) == (35, 40)
    unknown = dataclasses.replace(machine, memory=None)
    assert unknown.without(5, 2).room(2) is None
    assert free_bytes({"bytes_limit": 100, "bytes_in_use": 30}) == 70
    assert free_bytes({"bytes_limit": 100}) == 100
    assert free_bytes({}) is free_bytes(None) is None
