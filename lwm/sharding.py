"""Device mesh and partition specs.

    dp    copies of the model, each with its own rows of the batch
    fsdp  rows of the batch too, with the weights split over the devices
    tp    attention heads, feed-forward columns and the vocabulary
    sp    the sequence

All axes are explicit: a sharding is part of an array's type, and a wrong one is an error.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec as P

from lwm.errors import UserError

AXES = ("dp", "fsdp", "tp", "sp")

BATCH = ("dp", "fsdp")
"""Axes over which the rows of a batch are split."""
SHARD = ("fsdp", "sp")
"""Axes over which a weight is stored in parts, gathered when it is used."""

TOKENS = P(BATCH, "sp")
ACTS = P(BATCH, "sp", None)
HEADS = P(BATCH, "sp", "tp", None)
LOGITS = P(BATCH, "sp", "tp")
PAGES = P((*BATCH, "sp"), "tp", None, None)
DEVICES = P((*BATCH, "sp"))
ROWS = P(BATCH, None)
ROW = P(BATCH)


def tokens_spec(length: int) -> P:
    """Returns the spec of rows of so many tokens; one token cannot be split over `sp`."""
    return ROWS if length == 1 else TOKENS


def without_sp(spec: P) -> P:
    """Returns a weight's spec for generation, where all devices of `sp` hold the same part.

    Otherwise each decoded token would gather all weights.
    """
    kept = (tuple(name for name in axes_of(at) if name != "sp") for at in spec)
    return P(*(each or None for each in kept))


def axes_of(at: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the axes over which a dimension is split, as a spec names them."""
    return (at,) if isinstance(at, str) else tuple(at or ())


def parse_mesh(
    text: str, num_devices: int, *, platform: str | None = None
) -> tuple[int, int, int, int]:
    """Parses `1,-1,4,1` (dp, fsdp, tp, sp) or `dp=1,sp=8`; one -1 takes the remaining devices.

    Args:
        text: The sizes.
        num_devices: Number of devices.
        platform: Platform of the devices; `cpu` devices can be split into more.

    Raises:
        UserError: The text is no mesh, or its sizes do not fit `num_devices`.
    """
    sizes = _read_sizes(text)
    if sizes.count(-1) > 1:
        raise UserError(f"mesh {text!r} has more than one -1; only one size can be inferred")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if num_devices % known:
            raise UserError(
                f"mesh {text!r} needs a multiple of {known} devices, but there are {num_devices}"
            )
        sizes[sizes.index(-1)] = num_devices // known
    elif known > num_devices:
        flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={known}"
        split = f", or split the processor with {flag}" if platform == "cpu" else ""
        raise UserError(
            f"mesh {text!r} needs {known} devices, but there are {num_devices}; "
            f"lower a size or write -1 for the one to infer{split}"
        )
    dp, fsdp, tp, sp = sizes
    return dp, fsdp, tp, sp


def _read_sizes(text: str) -> list[int]:
    form = "write four sizes dp,fsdp,tp,sp such as 1,-1,4,1, or names such as dp=1,sp=8"
    parts = [part.strip() for part in text.split(",")]
    named = [part.partition("=") for part in parts]
    try:
        if all(equals for _, equals, _ in named):
            given = {name.strip(): int(size) for name, _, size in named}
            if len(given) < len(named) or not set(given) <= set(AXES):
                raise ValueError
            sizes = [given.get(axis, 1) for axis in AXES]
        else:
            sizes = [int(part) for part in parts]
    except ValueError:
        raise UserError(f"mesh {text!r} cannot be read; {form}") from None
    if len(sizes) != len(AXES) or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {text!r} cannot be read; {form}")
    return sizes


def make_mesh(text: str = "1,1,1,1", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh described by `text` of as many of the first devices as it needs.

    Raises:
        UserError: See `parse_mesh`; or there are several processes and some device stays unused; or
            the sizes do not fit the sides of a TPU slice.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = parse_mesh(text, len(devices), platform=devices[0].platform)
    used = math.prod(sizes)
    if used < len(devices) and jax.process_count() > 1:
        raise UserError(f"mesh {text!r} uses {used} of {len(devices)} devices; use all of them")
    explicit = (AxisType.Explicit,) * len(AXES)
    try:
        placed = _placed(sizes, devices[:used])
    except (AssertionError, NotImplementedError, ValueError) as error:
        kind = devices[0].device_kind
        raise UserError(
            f"mesh {text!r} cannot be laid on {used} of {len(devices)} devices {kind}: use all of "
            f"them, or sizes that divide the sides of the slice ({type(error).__name__})"
        ) from error
    return Mesh(placed, AXES, axis_types=explicit)


def own_mesh() -> Mesh:
    """Returns a mesh of one device of this process, also where several processes take part."""
    return make_mesh(devices=jax.local_devices()[:1])


def _placed(sizes: tuple[int, int, int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Arranges devices so that neighbours on an axis have fast links."""
    parts = _joined_by_slow_links(devices)
    # An axis may be longer than any side of a TPU slice, and then takes parts of several sides.
    if parts == 1:
        return create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    inner = inside_host(sizes, len(devices) // parts)
    outer = tuple(size // part for size, part in zip(sizes, inner, strict=True))
    return create_hybrid_device_mesh(
        inner,
        outer,
        devices,
        process_is_granule=devices[0].platform != "tpu",
        allow_split_physical_axes=True,
    )


def inside_host(sizes: tuple[int, int, int, int], devices: int) -> tuple[int, int, int, int]:
    """Returns the size of each axis (dp, fsdp, tp, sp) within the devices of one host.

    Axes that communicate most stay inside a host: tensor parallelism with the sums of each layer,
    then the ring, then the gathering of weights, then the sum of gradients.

    Raises:
        UserError: The sizes cannot fill a host.
    """
    inner, left = [1, 1, 1, 1], devices
    for axis in ("tp", "sp", "fsdp", "dp"):
        place = AXES.index(axis)
        inner[place] = math.gcd(sizes[place], left)
        left //= inner[place]
    if left > 1:
        shown = ",".join(map(str, sizes))
        raise UserError(
            f"mesh {shown} cannot be split over hosts of {devices} devices each; "
            "choose sizes whose factors fill a host"
        )
    dp, fsdp, tp, sp = inner
    return dp, fsdp, tp, sp


def _joined_by_slow_links(devices: Sequence[jax.Device]) -> int:
    """Returns the number of hosts, or of TPU slices, whose devices share fast links."""
    if devices[0].platform == "tpu":
        return len({getattr(device, "slice_index", 0) for device in devices})
    return len({device.process_index for device in devices})


def require_divisible(
    mesh: Mesh | AbstractMesh, what: str, size: int, axes: tuple[str, ...]
) -> None:
    """Checks that `axes` of the mesh divide `size`.

    Raises:
        UserError: They do not; names the size, the axes and their product.
    """
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts:
        names = " × ".join(f"{axis} {mesh.shape[axis]}" for axis in axes)
        total = f" = {parts}" if len(axes) > 1 else ""
        raise UserError(f"the mesh does not fit: {size} {what} do not divide by {names}{total}")


def require_batch(mesh: Mesh, *, rows: int, length: int, block: int = 1) -> None:
    """Checks that a batch divides over the mesh: rows by dp·fsdp, length by sp·block.

    Raises:
        UserError: It does not; names the size and its divisor.
    """
    require_divisible(mesh, "rows of the batch", rows, BATCH)
    require_divisible(mesh, "tokens of a row", length, ("sp",))
    local = length // mesh.shape["sp"]
    if local % block:
        raise UserError(
            f"the mesh does not fit: {length} tokens over sp {mesh.shape['sp']} leave {local} "
            f"a device, which do not divide by the block {block}"
        )


def manual(local: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Maps a function of one device's arrays over the mesh in use; JAX never differentiates it.

    To be called at each use: a shard_map made at import keeps the first mesh that it meets.
    """
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def put(array: np.ndarray, mesh: Mesh, spec: P) -> jax.Array:
    """Puts an array, which is the same on all processes, on the mesh."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    # `device_put` would compare the whole array between processes.
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def on_mesh(mesh: Mesh, spec: P) -> NamedSharding:
    """Returns the concrete sharding of `spec`, for data that comes from the host."""
    return NamedSharding(mesh, spec)


def dotted(path: tuple) -> str:
    """Returns the path of a leaf of a pytree with dots, such as `blocks.0.attention.wq`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")
