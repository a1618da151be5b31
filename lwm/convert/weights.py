"""Named tensors of another format, put onto a mesh as a model of ours."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float, Int

from lwm.convert.names import HUGGING_FACE, Layout, dimensions
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
    wanted, tree = jax.tree.flatten_with_path(_abstract(config, mesh, stacked=False))
    weights = _Weights(config, tensors, table, [dotted(path) for path, _ in wanted], ignore)
    leaves = []
    for path, leaf in wanted:
        ours = weights.read(dotted(path), leaf.shape)
        contracted = CONTRACTED.get(_kind(dotted(path))) if int8 else None
        leaves.append(_put(ours, config.dtype, mesh, leaf.sharding.spec, contracted))
        progress(len(leaves), len(wanted))
    return jax.tree.unflatten(tree, leaves)


def build_stacked(
    config: LlamaConfig,
    tensors: Mapping[str, np.ndarray],
    table: dict[str, Layout],
    *,
    mesh: Mesh,
    ignore: Callable[[str], bool] = lambda name: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Llama:
    """Reads every weight into a model to be trained: float32, stacked, as `Llama.init` places it.

    One tensor is in host memory at a time, and goes into the stack of its layers on the devices.
    Arguments and errors are those of `build_llama`.
    """
    wanted, tree = jax.tree.flatten_with_path(_abstract(config, mesh, stacked=True))
    parts = {dotted(path): layer_paths(dotted(path), config.num_layers) for path, _ in wanted}
    paths = [path for group in parts.values() for path in group]
    weights = _Weights(config, tensors, table, paths, ignore)

    def read(path: str, shape: tuple[int, ...]) -> np.ndarray:
        array = weights.read(path, shape).astype(np.float32)
        progress(paths.index(path) + 1, len(paths))
        return array

    leaves = []
    for (path, group), (_, leaf) in zip(parts.items(), wanted, strict=True):
        spec = leaf.sharding.spec
        if group == [path]:
            leaves.append(_place(read(path, leaf.shape), mesh, spec))
        else:
            layers = (read(each, leaf.shape[1:]) for each in group)
            leaves.append(_stack(layers, leaf.shape, mesh, spec))
    return jax.tree.unflatten(tree, leaves)


class VisionRows(Mapping[str, np.ndarray]):
    """A text model's tensors under Hugging Face's names, with rows for vision ids after its own.

    They are drawn as far apart as the rows that there are, on the host: the same on every mesh.
    """

    _TABLES = (HUGGING_FACE["embedding"].name, HUGGING_FACE["head"].name)

    def __init__(self, tensors: Mapping[str, np.ndarray], rows: int, *, seed: int):
        """Adds so many rows to each table, when it is asked for."""
        self._tensors, self._rows, self._seed = tensors, rows, seed

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads one tensor, and lengthens it if it is a table."""
        array = self._tensors[name]
        if name not in self._TABLES:
            return array
        array = array.astype(np.float32)
        random = np.random.default_rng([self._seed, self._TABLES.index(name)])
        rows = random.standard_normal((self._rows, *array.shape[1:]), np.float32)
        return np.concatenate([array, array.std() * rows])

    def __iter__(self) -> Iterator[str]:
        """Goes through the names, which stay the same."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Counts the tensors."""
        return len(self._tensors)


class _Weights:
    """Theirs by our paths, each checked when it is read."""

    def __init__(
        self,
        config: LlamaConfig,
        tensors: Mapping[str, np.ndarray],
        table: dict[str, Layout],
        paths: Iterable[str],
        ignore: Callable[[str], bool],
    ):
        self._tensors, self._sizes = tensors, sizes_in(table, config)
        self._layouts = {path: layout_of(table, path) for path in paths}
        found = {name for name in tensors if not ignore(name)}
        _require_same(found, {layout.name for layout in self._layouts.values()})

    def read(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        layout = self._layouts[path]
        array = self._tensors[layout.name]
        wanted = layout.shape(self._sizes)
        if array.shape != wanted:
            raise UserError(
                f"tensor {layout.name} has shape {array.shape}, but the configuration asks for "
                f"{wanted}; the weights and config.json are of different models"
            )
        return _fill(layout.to_ours(array, self._sizes), shape)


def _put(
    array: np.ndarray, dtype: str, mesh: Mesh, spec: P, contracted: tuple[int, ...] | None
) -> jax.Array | QuantizedWeight:
    if contracted is None:
        return _place(array.astype(dtype), mesh, spec)
    values, scale = quantize(array, contracted)
    # A scale is one number where the product sums, and whole there on every device.
    kept = P(*(None if axis in contracted else name for axis, name in enumerate(spec)))
    return QuantizedWeight(_place(values, mesh, spec), _place(scale, mesh, kept))


def _place(array: np.ndarray, mesh: Mesh, spec: P) -> jax.Array:
    # `device_put` would compare the whole array between processes.
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), array.__getitem__)


def _stack(layers: Iterable[np.ndarray], shape: tuple[int, ...], mesh: Mesh, spec: P) -> jax.Array:
    stack = jnp.zeros(shape, jnp.float32, device=NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        for number, layer in enumerate(layers):
            stack = _set_layer(stack, _place(layer, mesh, P(*spec[1:])), number)
    return stack


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(
    stack: Float[Array, "L ..."], layer: Float[Array, "..."], number: int | Int[Array, ""]
) -> Float[Array, "L ..."]:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, number, axis=0)


def _kind(path: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "", path)


def _abstract(config: LlamaConfig, mesh: Mesh, *, stacked: bool) -> Llama:
    check_mesh(config, mesh)
    with jax.set_mesh(mesh):
        made = jax.eval_shape(lambda: Llama.init(config, key=jr.key(0)))
        return made if stacked else jax.eval_shape(Llama.unstack, made)


def dotted(path: tuple) -> str:
    """Returns the path of a leaf of a model as tables write it."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def layer_paths(path: str, num_layers: int) -> list[str]:
    """Returns the paths of the layers in a leaf that stacks them; of another, its own."""
    stacked = re.fullmatch(r"blocks\.(?!\d)(.*)", path)
    if stacked is None:
        return [path]
    return [f"blocks.{layer}.{stacked[1]}" for layer in range(num_layers)]


def layout_of(table: dict[str, Layout], path: str) -> Layout:
    """Returns their name and layout of a weight of ours, which is of one layer if of any."""
    number = re.search(r"(?<=blocks\.)\d+", path)
    if number is None:
        return table[path]
    layout = table[re.sub(r"(?<=blocks\.)\d+", "*", path)]
    return Layout(layout.name.replace("*", number[0]), layout.order)


def sizes_in(table: dict[str, Layout], config: LlamaConfig) -> dict[str, int]:
    """Returns what the letters of a table mean: without a table for vision, V counts all ids."""
    sizes = dimensions(config)
    return sizes if "vision_embedding" in table else sizes | {"V": config.tokens.size}


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
