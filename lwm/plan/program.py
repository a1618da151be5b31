"""Programs as shapes on a mesh, to be traced or compiled without weights and without devices."""

import contextlib
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec as P


class Program(NamedTuple):
    """A jitted function and the shapes of its arguments."""

    name: str
    function: Any
    """As `jax.jit` returns it."""
    arguments: tuple[Any, ...]
    options: dict[str, Any] = {}  # noqa: RUF012  (it is never changed)
    """Keywords, all static."""
    held: int = 0
    """Bytes that a device holds meanwhile and the program does not get: other layers, say."""

    def traced(self) -> Any:
        """Returns the shapes of the results."""
        return self.function.eval_shape(*self.arguments, **self.options)


def used(mesh: Mesh | AbstractMesh) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which programs of a mesh are traced."""
    if isinstance(mesh, Mesh):
        return jax.set_mesh(mesh)
    return jax.sharding.use_abstract_mesh(mesh)


def on(mesh: Mesh | AbstractMesh, *shape: int, dtype: Any, spec: P) -> Any:
    """Returns the shape, type and place of an array."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def placed(tree: Any, mesh: Mesh | AbstractMesh, *, dtype: Any = None) -> Any:
    """Puts the shapes that a trace returned on a mesh, of another type if one is given."""

    def place(leaf: Any) -> Any:
        # Tracing has an abstract mesh only, without devices.
        spec = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else P()
        return on(mesh, *leaf.shape, dtype=leaf.dtype if dtype is None else dtype, spec=spec)

    return jax.tree.map(place, tree)


def bytes_of_a_device(tree: Any) -> int:
    """Adds up what a device holds of some arrays, before the platform pads them."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
