"""Named tensors of another format, put onto a mesh as a model of ours."""

import re
from collections.abc import Callable, Mapping

import jax
import jax.random as jr
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from lwm.convert.names import Layout, dimensions
from lwm.errors import UserError
from lwm.model.config import LlamaConfig
from lwm.model.llama import Llama, check_mesh
from lwm.model.quantize import CONTRACTED, QuantizedWeight, quantize


def build_llama(
    config: LlamaConfig,
    tensors: Mapping[str, np.ndarray],
    table: dict[str, Layout],
    *,
    mesh: Mesh,
    int8: bool = False,
    ignore: Callable[[str], bool] = lambda name: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Llama:
    """Reads every weight of an unstacked model straight to its place on the mesh.

    Weights are stored as `config.dtype`. One tensor is in host memory at a time.

    Args:
        config: The model that the tensors must fit.
        tensors: Theirs, by name; each is read when it is asked for.
        table: Their names and layouts, by the path of ours.
        mesh: The devices to put them on.
        int8: Store the matrices of the layers and the head in eight bits.
        ignore: Says which of their names are known to be no weight of ours.
        progress: Told how many tensors of how many are done.

    Raises:
        UserError: Tensors are missing, unexpected or of another shape: all of them are named.
    """
    check_mesh(config, mesh)
    abstract = _abstract(config, mesh)
    wanted, tree = jax.tree.flatten_with_path(abstract)
    layouts = {_dotted(path): _layout(table, _dotted(path)) for path, _ in wanted}
    found = {name for name in tensors if not ignore(name)}
    _require_same(found, {layout.name for layout in layouts.values()})

    sizes = dimensions(config)
    leaves = []
    for path, leaf in wanted:
        layout = layouts[_dotted(path)]
        array = tensors[layout.name]
        if array.shape != layout.shape(sizes):
            raise UserError(
                f"tensor {layout.name} has shape {array.shape}, but the configuration asks for "
                f"{layout.shape(sizes)}; the weights and config.json are of different models"
            )
        ours = _fill(layout.to_ours(array, sizes), leaf.shape)
        contracted = CONTRACTED.get(_kind(_dotted(path))) if int8 else None
        leaves.append(_put(ours, config.dtype, mesh, leaf.sharding.spec, contracted))
        progress(len(leaves), len(wanted))
    return jax.tree.unflatten(tree, leaves)


def _put(
    array: np.ndarray, dtype: str, mesh: Mesh, spec: P, contracted: tuple[int, ...] | None
) -> jax.Array | QuantizedWeight:
    if contracted is None:
        return jax.device_put(array.astype(dtype), NamedSharding(mesh, spec))
    values, scale = quantize(array, contracted)
    # A scale is one number where the product sums, and whole there on every device.
    kept = P(*(None if axis in contracted else name for axis, name in enumerate(spec)))
    return QuantizedWeight(
        jax.device_put(values, NamedSharding(mesh, spec)),
        jax.device_put(scale, NamedSharding(mesh, kept)),
    )


def _kind(path: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "", path)


def _abstract(config: LlamaConfig, mesh: Mesh) -> Llama:
    with jax.set_mesh(mesh):
        return jax.eval_shape(lambda: Llama.init(config, key=jr.key(0)).unstack())


def _dotted(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _layout(table: dict[str, Layout], path: str) -> Layout:
    number = re.search(r"(?<=blocks\.)\d+", path)
    if number is None:
        return table[path]
    layout = table[re.sub(r"(?<=blocks\.)\d+", "*", path)]
    return Layout(layout.name.replace("*", number[0]), layout.order)


def _fill(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Gives the array the shape of ours: merges split heads, pads the rows of a token table."""
    if array.ndim != len(shape):
        return array.reshape(shape)
    return np.pad(array, [(0, want - have) for want, have in zip(shape, array.shape, strict=True)])


def _require_same(found: set[str], wanted: set[str]) -> None:
    missing, unexpected = sorted(wanted - found), sorted(found - wanted)
    if not missing and not unexpected:
        return
    faults = []
    for word, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            faults.append(f"{word}: {', '.join(names[:3])}{more}")
    raise UserError(f"the weights do not fit the configuration; {'; '.join(faults)}")
