"""Reads named tensors of another format onto a mesh, as a `Llama`."""

import collections
import contextlib
import functools
import itertools
import math
import mmap
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Shaped

from lwm.convert.few_bits import Few, contracted_by, from_blocks
from lwm.convert.names import TensorLayout, dimensions
from lwm.errors import UserError
from lwm.formats.gguf import PackedArrays
from lwm.formats.gguf_blocks import Blocks
from lwm.formats.lazy import LazyArrays, require_same_tensors, shapes_of
from lwm.model.config import Compute, Dtype, LlamaConfig
from lwm.model.llama import Llama, check_mesh
from lwm.model.quantize import Quantized, QuantizedWeight, quantize_to
from lwm.progress import Progress
from lwm.sharding import axes_of, dotted, own_mesh

_THREADS = 2
"""Threads that read ahead: with one, a fast disk waits while tensors are reordered."""
_ALIGNMENT = 64
_LARGE = 1 << 20

A = TypeVar("A")
B = TypeVar("B")


def build_llama(
    config: LlamaConfig,
    tensors: Mapping[str, np.ndarray],
    table: dict[str, TensorLayout],
    *,
    mesh: Mesh,
    compute: Compute = Compute(),
    stacked: bool = False,
    dtype: Dtype | None = None,
    bits: Few | None = None,
    ignore: Callable[[str], bool] = lambda name: False,
    progress: Progress = lambda done, total: None,
) -> Llama:
    """Reads every weight directly to its place on the mesh.

    At most three tensors are in host memory at a time; on a CPU they become the weights of an
    unstacked model without a copy.

    Args:
        config: The model that the tensors must fit.
        tensors: Tensors of the other format by name; each is read on access.
        table: Names and layouts in the other format, by path of the weight.
        mesh: The devices to put them on.
        compute: How the model is computed.
        stacked: Whether to make a model for training, with stacked layers, as `Llama.init` does;
            otherwise layers are apart.
        dtype: Type of the weights; None: float32 of stacked layers, else `compute.dtype`.
        bits: Bits in which the matrices of layers and both tables are held, or `stored` for the
            types in which the files hold them; None: those of `dtype`.
        ignore: Returns whether a tensor of this name is known to be no weight.
        progress: Called with the number of tensors read and their total.

    Raises:
        UserError: Tensors are missing, unexpected or of another shape; they are named.
    """
    found, tree = jax.tree.flatten_with_path(_abstract(config, mesh, compute, stacked=stacked))
    wanted = [(dotted(path), leaf) for path, leaf in found]
    shapes = {
        part: leaf.shape if part == path else leaf.shape[1:]
        for path, leaf in wanted
        for part in layer_paths(path, config.num_layers)
    }
    weights = Weights(config, tensors, table, shapes, ignore)
    dtype = dtype or ("float32" if stacked else compute.dtype)

    def read(path: str) -> np.ndarray | Quantized:
        contracted = contracted_by(path)
        if bits is None or contracted is None:
            return weights.read(path, shapes[path], dtype)
        is_table = path == "embedding"
        shape = shapes[path][::-1] if is_table else shapes[path]
        if bits == "stored":
            blocks = weights.blocks(path)
            found = None if blocks is None else from_blocks(blocks, shape, contracted)
            return weights.read_stored(path, shapes[path]) if found is None else found
        weight = weights.read(path, shapes[path])
        # A table is looked up, and the head of a tied model: never in less than eight bits.
        return quantize_to(8 if is_table else bits, weight.T if is_table else weight, contracted)

    leaves = []
    with contextlib.closing(_ahead(read, shapes)) as ahead:
        arrays = _reporting(ahead, progress, len(shapes))
        for path, leaf in wanted:
            if path in shapes:
                array, spec = next(arrays), leaf.sharding.spec
                is_turned = path == "embedding" and isinstance(array, Quantized)
                leaves.append(_put(array, mesh, P(*reversed(spec)) if is_turned else spec))
            else:
                layers = itertools.islice(arrays, config.num_layers)
                leaves.append(_stack(layers, config.num_layers, mesh, leaf.sharding.spec))
    return jax.tree.unflatten(tree, leaves)


def with_vision_rows(
    tensors: Mapping[str, np.ndarray], table: dict[str, TensorLayout], rows: int, *, seed: int
) -> LazyArrays:
    """Returns a text model's tensors, with rows for vision ids appended to both of its tables.

    New rows are sampled on the host with the standard deviation of the table: alike on any mesh.
    """
    layouts = table["embedding"], table["head"]
    axes = {layout.name: layout.order.index("V") for layout in layouts}

    def shape(name: str, found: tuple[int, ...]) -> tuple[int, ...]:
        axis = axes.get(name)
        return tuple(size + rows * (at == axis) for at, size in enumerate(found))

    def read(name: str) -> np.ndarray:
        array = tensors[name]
        if name not in axes:
            return array
        array, axis = array.astype(np.float32), axes[name]
        random = np.random.default_rng([seed, [*axes].index(name)])
        new = random.standard_normal((rows, array.shape[1 - axis]), np.float32)
        return np.concatenate([array, array.std() * np.moveaxis(new, 0, axis)], axis=axis)

    return LazyArrays({name: shape(name, each) for name, each in shapes_of(tensors).items()}, read)


class Weights:
    """Tensors of another format by the paths of the model's weights."""

    def __init__(
        self,
        config: LlamaConfig,
        tensors: Mapping[str, np.ndarray],
        table: dict[str, TensorLayout],
        paths: Iterable[str],
        ignore: Callable[[str], bool],
    ):
        """Refuses tensors that do not fit the model; see `require_same_tensors`."""
        self._tensors, self._sizes = tensors, sizes_in(table, config)
        self._layouts = {path: layout_of(table, path) for path in paths}
        wanted = {each.name: each.shape(self._sizes) for each in self._layouts.values()}
        require_same_tensors(
            {name: shape for name, shape in shapes_of(tensors).items() if not ignore(name)},
            wanted,
            problem="the weights do not fit the configuration",
            hint="; they are of different models",
        )

    def read(self, path: str, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> np.ndarray:
        """Reads a weight in the model's layout and shape; tables are padded."""
        ours = self.unpadded(path)
        return _padded(contiguous(ours, dtype or ours.dtype), shape)

    def read_stored(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads a weight in bfloat16 if the file holds it so, and otherwise in float32."""
        ours, name = self.unpadded(path), self._layouts[path].name
        held = str(ours.dtype)
        if isinstance(self._tensors, PackedArrays) and self._tensors.kinds[name] == "BF16":
            held = "bfloat16"
        return _padded(contiguous(ours, held if held == "bfloat16" else "float32"), shape)

    def blocks(self, path: str) -> Blocks | None:
        """Returns the blocks of a weight that a GGUF file holds in few bits; else None."""
        if not isinstance(self._tensors, PackedArrays):
            return None
        return self._tensors.blocks(self._layouts[path].name)

    def unpadded(self, path: str) -> np.ndarray:
        """Reads a weight with a dimension for each letter of its layout, in any memory order.

        Raises:
            UserError: The tensor holds integers, booleans or complex numbers.
        """
        layout = self._layouts[path]
        theirs = self._tensors[layout.name]
        if theirs.dtype.kind in "biuc":
            raise UserError(
                f"{layout.name} holds {theirs.dtype} numbers, which are no weights; save the model "
                "in float32 or bfloat16"
            )
        return layout.to_ours(theirs, self._sizes)


def _ahead(read: Callable[[A], B], items: Iterable[A]) -> Generator[B]:
    """Yields `read(item)` for each item, in order, while two threads read the next ones."""
    waiting: collections.deque[Future[B]] = collections.deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > _THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _reporting(arrays: Iterable[B], progress: Progress, total: int) -> Iterator[B]:
    for number, array in enumerate(arrays, start=1):
        progress(number, total)
        yield array


def _put(found: np.ndarray | Quantized, mesh: Mesh, spec: P) -> jax.Array | QuantizedWeight:
    if not isinstance(found, Quantized):
        return _place(found, mesh, spec)
    values, scale, *rest = found
    # Scales have size 1 where all of a sum shares one, and groups stay whole.
    splits = (math.prod(mesh.shape[axis] for axis in each) for each in map(axes_of, spec))
    fits = [
        size > 1 and size % split == 0 for size, split in zip(scale.shape, splits, strict=False)
    ]
    kept = P(*(name if fit else None for name, fit in zip(spec, fits, strict=True)))
    # Groups stay whole: their axis is split as that of the scales, unless these are of columns.
    whole = spec if values.dtype == np.int8 and scale.dtype == np.float32 else kept
    others = (None if each is None else _place(each, mesh, kept) for each in rest)
    return QuantizedWeight(_place(values, mesh, whole), _place(scale, mesh, kept), *others)


def _place(array: np.ndarray, mesh: Mesh, spec: P) -> jax.Array:
    # `device_put` would compare the whole array between processes.
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), array.__getitem__)


def _stack(
    layers: Iterable[np.ndarray | Quantized], count: int, mesh: Mesh, spec: P
) -> jax.Array | QuantizedWeight:
    """Puts the weights of `count` layers on the mesh, as one array or quantised weight."""

    def empty(first: jax.Array) -> jax.Array:
        assert isinstance(first.sharding, NamedSharding)
        place = NamedSharding(mesh, P(spec[0], *first.sharding.spec))
        return jnp.zeros((count, *first.shape), first.dtype, device=place)

    stack = None
    with jax.set_mesh(mesh):
        for number, layer in enumerate(layers):
            placed = _put(layer, mesh, P(*spec[1:]))
            stack = jax.tree.map(empty, placed) if stack is None else stack
            stack = jax.tree.map(functools.partial(_set_layer, number=number), stack, placed)
    assert stack is not None
    return stack


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(
    stack: Shaped[Array, "L ..."], layer: Shaped[Array, "..."], number: int | Int[Array, ""]
) -> Shaped[Array, "L ..."]:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, number, axis=0)


def _abstract(
    config: LlamaConfig, mesh: Mesh, compute: Compute = Compute(), *, stacked: bool
) -> Llama:
    check_mesh(config, mesh)
    with jax.set_mesh(mesh):
        made = jax.eval_shape(lambda: Llama.init(config, compute, key=jr.key(0)))
        return made if stacked else jax.eval_shape(Llama.for_generation, made)


def weight_paths(config: LlamaConfig) -> list[str]:
    """Returns the paths of all weights of an unstacked model."""
    leaves = jax.tree.leaves_with_path(_abstract(config, own_mesh(), stacked=False))
    return [dotted(path) for path, _ in leaves]


def layer_paths(path: str, num_layers: int) -> list[str]:
    """Returns the paths of the layers in a stacked leaf; for other leaves, the path itself."""
    stacked = re.fullmatch(r"blocks\.(?!\d)(.*)", path)
    if stacked is None:
        return [path]
    return [f"blocks.{layer}.{stacked[1]}" for layer in range(num_layers)]


def layout_of(table: dict[str, TensorLayout], path: str) -> TensorLayout:
    """Returns name and layout in the other format of a weight of an unstacked model."""
    number = re.search(r"(?<=blocks\.)\d+", path)
    if number is None:
        return table[path]
    layout = table[re.sub(r"(?<=blocks\.)\d+", "*", path)]
    return TensorLayout(layout.name.replace("*", number[0]), layout.order)


def in_layout(weight: np.ndarray, layout: TensorLayout, sizes: Mapping[str, int]) -> np.ndarray:
    """Returns a weight of the model in another format's layout, without the padding of tables."""
    letters = layout.order.split(" -> ")[1]
    if "V" in letters:
        weight = weight[(slice(None),) * letters.index("V") + (slice(sizes["V"]),)]
    return layout.to_theirs(weight, dict(sizes))


def sizes_in(table: dict[str, TensorLayout], config: LlamaConfig) -> dict[str, int]:
    """Returns the sizes of a table's letters; without a vision table, V counts all ids."""
    sizes = dimensions(config)
    return sizes if "vision_embedding" in table else sizes | {"V": config.tokens.size}


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Returns memory aligned so that JAX on a CPU uses it without a copy."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.frombuffer(_pages(num_bytes + _ALIGNMENT), np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _pages(num_bytes: int) -> bytearray | mmap.mmap:
    """Returns memory in small pages.

    NumPy requests huge pages; if the page cache fills the memory, Linux then compacts pages for
    longer than the reading takes.
    """
    if num_bytes < _LARGE or not hasattr(mmap, "MAP_PRIVATE"):
        return bytearray(num_bytes)
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def contiguous(array: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Returns the array if it is contiguous and of this type, else such a copy."""
    if array.dtype == dtype and array.flags.c_contiguous:
        return array
    out = aligned_empty(array.shape, dtype)
    if array.dtype == dtype and array.itemsize == 2:
        # As integers: NumPy moves bfloat16 slowly and holds the GIL.
        out.view(np.uint16)[...] = array.view(np.uint16)
    else:
        out[...] = array
    return out


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Gives a weight its shape in the model: merges split heads, pads the rows of a table."""
    if array.size == math.prod(shape):
        return array.reshape(shape)
    return np.pad(array, [(0, want - have) for want, have in zip(shape, array.shape, strict=True)])
