"""Compiles reading and decoding for TPU chips that are not there, and reports the memory of each.

    pip install libtpu==0.0.42.1     # for JAX 0.10.2
    python benchmarks/pool.py --model 7b --topology v4:2x4x4 --mesh 1,1,4,8 --context 1048576

Nothing is allocated or run: TPU's own compiler says what a chip holds, its layouts of weights and
pages included. One row of so many tokens is read in chunks, and then continued.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pod:
    """The model, the chips, and the tokens in the cache."""

    model: str = "7b"
    topology: str = "v4:2x4x4"
    """Kind and arrangement of the chips, as JAX names them."""
    cores: str | None = "megacore"
    """How the cores of a chip are used; `megacore` makes the two of a v4 or v5p one device."""
    mesh: str = "1,1,4,8"
    context: int = 1 << 20
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


class Programs:
    """The two programs of generation for one row, and their arguments as shapes on the chips."""

    def __init__(self, pod: Pod):
        import jax
        from jax.experimental import topologies
        from jax.sharding import AxisType, Mesh

        from lwm.model.config import Compute, preset
        from lwm.model.llama import Llama
        from lwm.model.pool import PAGE, PagePool
        from lwm.sharding import AXES, parse_mesh

        options = {} if pod.cores is None else {"chip_config_name": pod.cores}
        chips = topologies.get_topology_desc(pod.topology, platform="tpu", **options)
        sizes = parse_mesh(pod.mesh, len(chips.devices))
        if sizes[0] * sizes[1] > 1:
            sys.exit("the row is one: give a mesh of tp and sp")
        placed = topologies.make_mesh(chips, sizes, AXES).devices
        self.mesh = Mesh(placed, AXES, axis_types=(AxisType.Explicit,) * len(AXES))
        self.config = dataclasses.replace(preset(pod.model), max_context=pod.context)
        self.dtype = pod.dtype
        compute, per_device = Compute(dtype=pod.dtype), -(-pod.context // (PAGE * sizes[3])) + 1
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            model = jax.eval_shape(
                lambda: Llama.init(self.config, compute, key=jax.random.key(0)).for_generation()
            )
            pool = jax.eval_shape(
                lambda: PagePool.empty(self.config, pod.dtype, per_device=per_device)
            )
        self.model = jax.tree.map(
            lambda leaf: self.on(*leaf.shape, dtype=pod.dtype, spec=leaf.sharding.spec), model
        )
        self.pool = jax.tree.map(
            lambda leaf: self.on(*leaf.shape, dtype=leaf.dtype, spec=leaf.sharding.spec), pool
        )

    def on(self, *shape: int, dtype: Any, spec: Any) -> Any:
        """Returns an array's shape, type and place."""
        import jax

        sharding = jax.sharding.NamedSharding(self.mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def reading(self) -> Any:
        """Compiles one layer over a chunk of the prompt."""
        import jax
        import jax.numpy as jnp

        from lwm.generate.pages import LONG
        from lwm.model.llama import _extend_block
        from lwm.model.pool import Place, table_width
        from lwm.sharding import ACTS, ROW, ROWS

        table = self.on(1, table_width(self.config.max_context), dtype=jnp.int32, spec=ROWS)
        place = Place(table, *[self.on(1, dtype=jnp.int32, spec=ROW)] * 2)
        states = self.on(1, LONG, self.config.dim, dtype=self.dtype, spec=ACTS)
        turn = self.on(1, LONG, self.config.head_dim // 2, dtype=jnp.float32, spec=ACTS)
        with jax.set_mesh(self.mesh):
            layer = self.pool.layers[0]
            block = self.model.blocks[0]
            return _extend_block.lower(block, states, (turn, turn), layer, place).compile()

    def decoding(self) -> Any:
        """Compiles the loop that writes ids."""
        import jax
        from jax.sharding import PartitionSpec as P

        from lwm.generate.decoding import BURST, burst
        from lwm.generate.slots import Slots
        from lwm.sharding import make_mesh

        slots = Slots(self.model, make_mesh(), 1, grammar=None, stop_places=8)
        seen = self.on(*slots._seen.shape, dtype=slots._seen.dtype, spec=P(None, None))
        inputs = slots._rows, BURST, slots._inputs
        with jax.set_mesh(self.mesh):
            return burst.lower(self.model, self.pool, seen, *inputs, grammar=None).compile()


def bytes_of_a_chip(tree: Any) -> int:
    """Adds up what a chip holds of some arrays, before the platform pads them."""
    import math

    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def main(pod: Pod) -> None:
    """Prints a line of a table for each program."""
    programs = Programs(pod)
    weights, pages = (bytes_of_a_chip(each) for each in (programs.model, programs.pool))
    layer = bytes_of_a_chip((programs.model.blocks[0], programs.pool.layers[0]))
    print("| program | weights | pages | arguments, as laid out | temporaries | a chip |")
    print("| --- | --- | --- | --- | --- | --- |")
    compiles: tuple[tuple[str, Callable[[], Any], int], ...] = (
        ("reading", programs.reading, weights + pages - layer),  # the other layers wait
        ("decoding", programs.decoding, 0),
    )
    for name, compile_it, rest in compiles:
        used = compile_it().memory_analysis()
        new = used.output_size_in_bytes - used.alias_size_in_bytes
        total = rest + used.argument_size_in_bytes + used.temp_size_in_bytes + new
        sizes = weights, pages, used.argument_size_in_bytes, used.temp_size_in_bytes + new, total
        print(f"| {name} | {' | '.join(f'{size / 2**30:.2f}' for size in sizes)} |", flush=True)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Pod))
