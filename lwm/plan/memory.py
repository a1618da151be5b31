"""Memory that inference needs on each device: weights, cache and activations.

Weights and cache are exact. Activations are an upper estimate of the buffers of the compiled
programs; tests compare it with XLA's own figures. Nothing is allocated, and no device is needed.

Letters as in `lwm.model.llama`; B, N, K and F count the part on one device.
"""

import dataclasses
import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import AbstractMesh, AxisType

from lwm.errors import UserError
from lwm.model.config import BITS_HELD, CacheDtype, Held, LlamaConfig, compute_dtype, usual_cache
from lwm.model.llama import Llama
from lwm.model.pool import PAGE
from lwm.model.quantize import CONTRACTED, GROUP, has_groups
from lwm.ops.blockwise import block_sizes
from lwm.ops.cpu.build import is_expected
from lwm.ops.cpu.stored import MOST_ROWS
from lwm.ops.held import held_size
from lwm.ops.paged import CHUNK_TOGETHER, TOGETHER, pages_at_once
from lwm.sharding import AXES, BATCH

MeshSizes = tuple[int, int, int, int]
"""Sizes of a mesh: dp, fsdp, tp, sp."""

CHUNK = 512
"""Largest chunk of a prompt, in tokens: `lwm.generate.pages.LONG`."""
SHORT = 64
"""Smallest chunk: `lwm.generate.pages.SHORT`; the devices of sp divide it."""

_FLOAT32, _FLOAT16 = 4, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes of each device's memory."""

    weights: int
    cache: int
    activations: int
    """Upper estimate of all other buffers; the program itself is not counted."""

    @property
    def total(self) -> int:
        """Sum of the three."""
        return self.weights + self.cache + self.activations


def inference_need(
    config: LlamaConfig,
    *,
    context: int,
    rows: int = 1,
    lane: int | None = None,
    mesh: MeshSizes,
    dtype: Held = "float32",
    cache: CacheDtype | None = None,
    platform: str = "gpu",
) -> MemoryNeed:
    """Returns the memory that reading and continuing prompts needs.

    Args:
        config: The model.
        context: Tokens of each row, read and written.
        rows: Rows in the cache, split over dp and fsdp. Their prompts are read one by one.
        lane: Rows that are decoded together; by default all.
        mesh: dp, fsdp, tp, sp.
        dtype: Type of the weights, and, unless it is int8 or int4, of activations and cache.
        cache: Type of keys and values, if it is another one.
        platform: JAX's name of the kind of device. XLA for CPU widens and gathers all weights
            before the decoding loop; for others it does so layer by layer.

    Raises:
        UserError: The weights, or the tokens of a chunk, do not divide over the mesh.
    """
    groups, sp = _parts(mesh, BATCH), _parts(mesh, ("sp",))
    if SHORT % sp:
        raise UserError(
            f"the mesh does not fit: {SHORT} tokens of a chunk do not divide by sp {sp}"
        )
    # Page 0 takes the writes of rows that are not in use.
    pages = math.ceil(rows / groups) * math.ceil(context / (PAGE * sp)) + 1
    # Replicas over dp and sp are alike: one entry in the cache of results serves them all.
    weights = _weights(config, (1, *mesh[1:3], 1), dtype)
    page = _page_bytes(config, cache or usual_cache(dtype), mesh=mesh)
    work = _Work(
        config=config,
        mesh=mesh,
        rows=math.ceil((lane or rows) / groups),
        weights=weights,
        table=math.ceil((math.ceil(context / PAGE) + 1) / sp),
        dtype=dtype,
        page=page,
        is_cpu=platform == "cpu",
    )
    activations = max(work.embedding(), work.reading(), work.writing())
    held = config.num_layers * pages * page
    return MemoryNeed(weights=weights.stored, cache=held, activations=activations)


def require_divisible_weights(config: LlamaConfig, mesh: MeshSizes) -> None:
    """Refuses a mesh over which the weights do not divide; its devices need not exist.

    Raises:
        UserError: The weight, its size and the divisor.
    """
    for leaf in _leaves(config):
        for size, axes in zip(leaf.shape, leaf.axes, strict=True):
            if size % _parts(mesh, axes):
                over = " × ".join(f"{axis} {mesh[AXES.index(axis)]}" for axis in axes)
                raise UserError(
                    f"the mesh does not fit: weight {leaf.path} has a dimension of {size}, which "
                    f"does not divide by {over}"
                )


def _page_bytes(config: LlamaConfig, cache: CacheDtype, *, mesh: MeshSizes) -> int:
    """Returns the bytes of the keys and values of a page of one layer."""
    heads, dtype = config.num_kv_heads // _parts(mesh, ("tp",)), jnp.dtype(cache)
    return 2 * PAGE * heads * held_size(config.head_dim, dtype) * dtype.itemsize


class _Leaf(NamedTuple):
    """One stacked weight, and the mesh axes over which each of its dimensions is split."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]

    @property
    def contracted(self) -> tuple[int, ...] | None:
        """The dimensions that share a scale; None for weights that are never quantised."""
        kind = self.path.removeprefix("blocks.")
        if self.path == "embedding":  # stored transposed
            return (1,)
        summed = CONTRACTED.get(kind)
        if summed is None or kind == self.path:
            return summed
        return tuple(axis + 1 for axis in summed)

    def elements(self, mesh: MeshSizes, *, without: tuple[int, ...] = ()) -> int:
        """Counts the elements on one device; dimensions in `without` count as 1."""
        return math.prod(
            size // _parts(mesh, axes)
            for number, (size, axes) in enumerate(zip(self.shape, self.axes, strict=True))
            if number not in without
        )


def _leaves(config: LlamaConfig) -> tuple[_Leaf, ...]:
    """Returns shapes and partitioning of all weights, from `Llama.init`."""
    return _initialized(dataclasses.replace(config, max_context=1))


@functools.lru_cache(maxsize=64)
def _initialized(config: LlamaConfig) -> tuple[_Leaf, ...]:
    # In a thread of its own: JAX does not replace a mesh in use by a smaller one.
    with ThreadPoolExecutor(1) as alone:
        made = alone.submit(_abstract, config).result()
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(made):
        spec = (*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec)))
        axes = tuple((at,) if isinstance(at, str) else tuple(at or ()) for at in spec)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        leaves.append(_Leaf(name, leaf.shape, axes))
    return tuple(leaves)


def _abstract(config: LlamaConfig) -> Llama:
    one = AbstractMesh((1,) * len(AXES), AXES, axis_types=(AxisType.Explicit,) * len(AXES))
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    with jax.sharding.use_abstract_mesh(one):
        return jax.eval_shape(lambda key: Llama.init(config, key=jr.wrap_key_data(key)), key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Weights:
    """The weights of one device."""

    stored: int
    """Bytes."""
    layer: int
    """Elements of one layer, gathered over `fsdp`."""
    table: int
    """Elements of the token table, gathered; the head has as many."""


def held_bytes(config: LlamaConfig, mesh: MeshSizes, dtype: Held) -> int:
    """Returns the bytes of the weights on one device, held in a type; scales count.

    Raises:
        UserError: The mesh does not divide the weights.
    """
    return _weights(config, mesh, dtype).stored


@functools.lru_cache(maxsize=256)
def _weights(config: LlamaConfig, mesh: MeshSizes, dtype: Held) -> _Weights:
    require_divisible_weights(config, mesh)
    stored, gathered = 0, {}
    tp = mesh[AXES.index("tp")]
    for leaf in _leaves(config):
        stored += _stored(leaf, mesh, dtype)
        gathered[leaf.path] = leaf.elements((1, 1, tp, 1))
    layers = sum(count for path, count in gathered.items() if path.startswith("blocks."))
    return _Weights(stored=stored, layer=layers // config.num_layers, table=gathered["embedding"])


def _stored(leaf: _Leaf, mesh: MeshSizes, dtype: Held) -> int:
    """Returns the bytes of a weight on one device, its scales included."""
    count = leaf.elements(mesh)
    if dtype not in BITS_HELD or leaf.contracted is None:
        return count * _width(dtype)
    if not has_groups(leaf.shape, leaf.contracted):
        return count + leaf.elements(mesh, without=leaf.contracted) * _FLOAT32
    axis = leaf.contracted[-1]
    parts = _parts(mesh, leaf.axes[axis])
    count *= parts if leaf.shape[axis] // GROUP % parts else 1
    # The table of another model is rounded to eight bits; none of GGUF's types takes more.
    bits = BITS_HELD["int8" if leaf.path == "embedding" else dtype]
    return int(count * bits / 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
    """Bytes of each compiled program of generation, besides weights and cache.

    The factors count XLA's buffers in the present programs; see the tests.
    """

    config: LlamaConfig
    mesh: MeshSizes
    rows: int
    """Rows that are decoded together."""
    weights: _Weights
    table: int
    """Entries of a row's table on each device."""
    dtype: Held
    page: int
    """Bytes of a page's keys and values."""
    is_cpu: bool

    def embedding(self) -> int:
        """Counts embedding a chunk of one row: its states three times, and the gathered table.

        All devices of `sp` work on one chunk, each on its share.
        """
        return 3 * self._states(_FLOAT32) + (2 * self._table if self._is_gathered else 0)

    def reading(self) -> int:
        """Counts one layer over a chunk of one row."""
        heads = self.config.num_heads // self._tp
        queries, _ = block_sizes(CHUNK, PAGE, heads)
        pages = 1 if self.is_cpu else CHUNK_TOGETHER
        # Scores of a tile and their exponentials; elsewhere its keys and values twice, as well.
        tile = heads * queries * pages * PAGE * 2 * _FLOAT32
        tile += 0 if self.is_cpu else 2 * pages * self.page
        # Queries, keys and values after projection and RoPE, and the output's sums.
        projected = 3 * CHUNK * heads * self.config.head_dim * _FLOAT32
        if self._sp > 1:  # as they are gathered over `sp`, and the devices' results merged
            projected *= 2
        hidden = 3 * self._chunk * self.config.mlp_dim // self._tp * _FLOAT32
        if self.dtype in BITS_HELD and self._has_kernels:  # in the order in which they are read
            hidden += hidden // 3
        states = 2 * self._states(_width(self.dtype)) + 2 * self._states(_FLOAT32)
        turn = self._chunk * self.config.head_dim * _FLOAT32
        return states + turn + max(tile + projected, hidden) + self._layer

    def writing(self) -> int:
        """Counts all layers and logits for one token of each row; on a CPU, all weights too."""
        # Every device holds the logits of all rows, and the buffers of sampling.
        rows = self.rows * _parts(self.mesh, BATCH)
        logits = 10 * rows * self.config.tokens.rows * _FLOAT32
        kv_heads = self.config.num_kv_heads // self._tp
        pages = 3 * TOGETHER * kv_heads * PAGE * self.config.head_dim * _FLOAT32
        if not self.is_cpu:
            pages = 2 * self.rows * pages_at_once(self.rows, self.page, most=self.table)[0]
            pages *= self.page
        states = 6 * self.rows * (self.config.mlp_dim // self._tp + 2 * self.config.dim)
        return logits + pages + states * _FLOAT32 + self._kept()

    def _kept(self) -> int:
        """Counts copies of weights that decoding uses.

        XLA for CPU hoists them out of the loop: all weights, widened, unless a kernel reads them
        as they are stored.
        """
        config, weights = self.config, self.weights
        if self._has_kernels:
            if not self._is_gathered:
                return 0
            # XLA for CPU gathers bfloat16 in a form twice as wide.
            forms = 2 if self.dtype == "bfloat16" else 1
            gathered = forms * weights.stored * _parts(self.mesh, ("fsdp",))
            width = BITS_HELD["int8"] / 8 if self.dtype in BITS_HELD else _width(self.dtype)
            return gathered + int(2 * weights.table * width)
        if not self.is_cpu:
            head = 2 * self._table if self._is_gathered or self.dtype in BITS_HELD else 0
            return self._layer + head
        every = (config.num_layers * weights.layer + weights.table) * _FLOAT32
        if self._is_gathered:
            return every + 2 * weights.table * _FLOAT32 + self._layer // 3
        if self.dtype in BITS_HELD:
            return every
        if self.dtype == "float32":
            return 0
        return weights.table * (_FLOAT32 + (_width(self.dtype) if config.tie_embeddings else 0))

    @property
    def _has_kernels(self) -> bool:
        if self.dtype not in BITS_HELD and (self.dtype == "float32" or self.rows > MOST_ROWS):
            return False
        return self.is_cpu and is_expected()

    @property
    def _layer(self) -> int:
        """A gathered or dequantised layer, and half of the next one."""
        is_read_as_held = self.dtype not in BITS_HELD or self._has_kernels
        if not self._is_gathered and is_read_as_held:
            return 0
        width = _FLOAT32 if self.is_cpu else _width(self.dtype)
        if self.dtype in BITS_HELD and self._has_kernels:
            width = BITS_HELD[self.dtype] / 8
        return int(3 * self.weights.layer * width / 2)

    @property
    def _table(self) -> int:
        return self.weights.table * (_FLOAT32 if self.is_cpu else _width(self.dtype))

    @property
    def _is_gathered(self) -> bool:
        return _parts(self.mesh, ("fsdp",)) > 1

    @property
    def _sp(self) -> int:
        return _parts(self.mesh, ("sp",))

    @property
    def _chunk(self) -> int:
        return CHUNK // self._sp

    @property
    def _tp(self) -> int:
        return _parts(self.mesh, ("tp",))

    def _states(self, width: int) -> int:
        return self._chunk * self.config.dim * width


def _width(dtype: Held) -> int:
    return jnp.dtype(compute_dtype(dtype)).itemsize


def _parts(mesh: MeshSizes, axes: tuple[str, ...]) -> int:
    return math.prod(mesh[AXES.index(axis)] for axis in axes)
