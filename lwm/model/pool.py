"""Pool of pages for keys and values: an argument and a result, never hidden state.

Each row has a table of its pages and a length of its own, both data, so that rows come and go
without a program for each. Only this file and `lwm.ops.paged` depend on the memory layout.

Pages are split over the devices of `dp`, `fsdp` and `sp`, and their heads over `tp`. The pages of
a row lie on the devices of `sp` in turn, so that each reads an equal share of them. Numbers of
pages count on one device; page 0 of each takes the writes of rows that are not in use, and of
tokens whose page lies on another device.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P, get_abstract_mesh
from jaxtyping import Array, Float, Int

from lwm.model.config import CacheDtype, LlamaConfig
from lwm.ops.cpu.attention import attend_new
from lwm.ops.held import Keys, Values, held_size, held_type, narrowed
from lwm.ops.paged import PAGE, attend_pages, read_pages
from lwm.sharding import BATCH, DEVICES, HEADS, PAGES, ROW, ROWS, manual


class Place(NamedTuple):
    """Pages and lengths of rows, the same for every layer."""

    pages: Int[Array | np.ndarray, "B W"]
    """Page of each `PAGE` tokens; 0 beyond the row's last. W is `table_width`."""
    lengths: Int[Array | np.ndarray, " B"]
    """Tokens in the pages, and so the position of the next."""
    offsets: Int[Array | np.ndarray, " B"]
    """Page j lies on device (j + offset) mod sp."""


def table_width(context: int) -> int:
    """Returns the entries of a row's table: one more than pages, for the padding of a chunk."""
    return -(-context // PAGE) + 1


class LayerPages(eqx.Module):
    """Keys and values of one layer, head-major: decoding reads one head contiguously.

    Keys are stored transposed, in the order in which a matrix product with a query reads them.
    `lwm.ops.held` says how numbers are held.
    """

    keys: Keys
    values: Values

    def attend(
        self,
        q: Float[Array, "B S N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        place: Place,
    ) -> tuple[Float[Array, "B S N H"], "LayerPages"]:
        """Stores the keys and values of new tokens, and attends from them to their rows.

        Of several tokens, the first stands at a multiple of S or of `PAGE`, the smaller of both.
        They are split over `sp`; a device attends from all of them to its own pages, and gets the
        merged results of its share ("Context parallelism for scalable million-token inference",
        arXiv 2411.01783, section 3). One token cannot be split.
        """
        one = q.shape[1] == 1
        heads = P(BATCH, None, "tp", None) if one else HEADS

        def local(q, k, v, keys, values, place):
            step = jax.lax.axis_size("sp")
            if step > 1 and not one:
                q, k, v = (jax.lax.all_gather(x, "sp", axis=1, tiled=True) for x in (q, k, v))
            first = (jax.lax.axis_index("sp") - place.offsets) % step
            inputs = q, k, v, keys, values, place.pages, place.lengths, first
            plain = partial(_plain, step=step)
            found = attend_new(plain, *inputs, step=step) if one else plain(*inputs)
            out, lse, keys, values = found
            return _merged(out, lse, split=not one).astype(q.dtype), keys, values

        mapped = manual(
            local,
            in_specs=(heads, heads, heads, PAGES, PAGES, Place._make((ROWS, ROW, ROW))),
            out_specs=(heads, PAGES, PAGES),
        )
        out, keys, values = mapped(q, k, v, self.keys, self.values, place)
        return out, LayerPages(keys, values)


class PagePool(eqx.Module):
    """Pages of all layers."""

    layers: tuple[LayerPages, ...]

    @classmethod
    def empty(cls, config: LlamaConfig, dtype: CacheDtype, *, per_device: int) -> "PagePool":
        """Allocates so many pages on each device of the mesh in use, page 0 included."""
        count = per_device * _num_parts()

        def zeros(*shape: int) -> Array:
            shape = count, config.num_kv_heads, *shape
            return jnp.zeros(shape, held_type(jnp.dtype(dtype)), out_sharding=PAGES)

        H = held_size(config.head_dim, jnp.dtype(dtype))
        return cls(
            tuple(LayerPages(zeros(H, PAGE), zeros(PAGE, H)) for _ in range(config.num_layers))
        )

    @property
    def per_device(self) -> int:
        """Pages of each device of the mesh in use."""
        return len(self.layers[0].keys) // _num_parts()

    def extended(self, layers: Sequence[LayerPages]) -> "PagePool":
        """Returns the pool after every layer has stored new tokens."""
        return PagePool(tuple(layers))

    def enlarged(self, per_device: int) -> "PagePool":
        """Returns the pool with so many pages on each device; pages keep their numbers.

        Each array is deleted once it is copied, so that the whole pool never exists twice.
        """
        more = per_device - self.per_device

        def lengthen(old: Array) -> Array:
            new = manual(
                lambda x: jnp.pad(x, ((0, more), (0, 0), (0, 0), (0, 0))), (PAGES,), PAGES
            )(old)
            new.block_until_ready()
            old.delete()
            return new

        return jax.tree.map(lengthen, self) if more > 0 else self


@partial(jax.jit, donate_argnames="pool")
def copy_pages(
    pool: PagePool, sources: Int[Array, " devices"], targets: Int[Array, " devices"]
) -> PagePool:
    """Copies one page on each device of `dp`, `fsdp` and `sp`; page 0 to itself where none is."""

    def local(cache, source, target):
        page = jax.lax.dynamic_index_in_dim(cache, source[0])
        return jax.lax.dynamic_update_index_in_dim(cache, page, target[0], axis=0)

    copy = manual(local, (PAGES, DEVICES, DEVICES), PAGES)
    return jax.tree.map(lambda cache: copy(cache, sources, targets), pool)


def _num_parts() -> int:
    shape = get_abstract_mesh().shape
    return shape["dp"] * shape["fsdp"] * shape["sp"]


def _plain(q, k, v, keys, values, pages, lengths, first, *, step):
    """Stores new tokens, and attends from them to their rows."""
    one = q.shape[1] == 1
    stored = _stored_here(pages, first, step)
    keys, values = (_store_one if one else _store)(keys, values, k, v, stored, lengths)
    here = _own(pages, first, step)
    run = attend_pages if one else read_pages
    return *run(q, keys, values, here, lengths, first, step=step), keys, values


def _stored_here(pages, first, step):
    """Returns the table that new tokens are written by: page 0 for those of other devices."""
    numbers = jnp.arange(pages.shape[1])
    return jnp.where((numbers - first[:, None]) % step == 0, pages, 0)


def _own(pages, first, step):
    """Returns the part of the table that names pages of this device."""
    if step == 1:
        return pages
    width = pages.shape[1]
    numbers = first[:, None] + step * jnp.arange(-(-width // step))
    found = jnp.take_along_axis(pages, jnp.minimum(numbers, width - 1), axis=1)
    return jnp.where(numbers < width, found, 0)


def _merged(out, lse, *, split):
    """Merges attention to the pages of each device of `sp`; returns a device's share if `split`."""
    if jax.lax.axis_size("sp") == 1:
        return out
    # Every token has its own page on some device, so the largest is finite.
    weight = jnp.exp(lse - jax.lax.pmax(lse, "sp"))
    add = partial(jax.lax.psum, axis_name="sp")
    if split:
        add = partial(jax.lax.psum_scatter, axis_name="sp", scatter_dimension=1, tiled=True)
    return add(out * weight[..., None]) / add(weight)[..., None]


def _store(keys, values, k, v, pages, lengths):
    """Writes a chunk per row: whole pages, or a part of one."""
    k = narrowed(k.transpose(0, 2, 3, 1), keys.dtype, axis=2)
    v = narrowed(v.transpose(0, 2, 1, 3), values.dtype, axis=3)
    size = min(k.shape[3], PAGE)
    for row in range(len(k)):
        for start in range(0, k.shape[3], size):
            position = lengths[row] + start
            page, offset = pages[row, position // PAGE], position % PAGE
            keys = jax.lax.dynamic_update_slice(
                keys, k[row, None, :, :, start : start + size], (page, 0, 0, offset)
            )
            values = jax.lax.dynamic_update_slice(
                values, v[row, None, :, start : start + size], (page, 0, offset, 0)
            )
    return keys, values


def _store_one(keys, values, k, v, pages, lengths):
    """Writes one token per row."""
    page = jnp.take_along_axis(pages, lengths[:, None] // PAGE, axis=1)[:, 0]
    k, v = (narrowed(x[:, 0], keys.dtype, axis=2) for x in (k, v))
    inputs = keys, values, k, v, page, lengths % PAGE
    return jax.lax.platform_dependent(*inputs, tpu=_set_in_turn, default=_set_at_once)


def _set_at_once(keys, values, k, v, page, offset):
    return keys.at[page, :, :, offset].set(k), values.at[page, :, offset].set(v)


def _set_in_turn(keys, values, k, v, page, offset):
    """Sets the same, row by row: XLA for TPUs would copy all pages into the layout of a scatter."""
    for row in range(len(k)):
        where = page[row], 0, 0
        column, line = k[row, None, :, :, None], v[row, None, :, None]
        keys = jax.lax.dynamic_update_slice(keys, column, (*where, offset[row]))
        values = jax.lax.dynamic_update_slice(values, line, (*where[:2], offset[row], 0))
    return keys, values
