"""Checks before loading that a model fits the devices, and finds changes that make it fit."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from lwm.devices import Machine
from lwm.errors import UserError
from lwm.model.config import CacheDtype, Held, LlamaConfig
from lwm.ops.paged import PAGE
from lwm.plan.memory import SHORT, MemoryNeed, MeshSizes, inference_need

_MOST_DEVICES = 4096
_LEAST_CONTEXT = 1024
_MOST_PAGES = 1 << 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A model with the sizes, mesh and type that it is run with."""

    config: LlamaConfig
    context: int
    rows: int
    mesh: MeshSizes
    dtype: Held
    cache: CacheDtype | None = None
    """Type of keys and values; None: as usual for the dtype."""
    lane: int | None = None
    """Rows that are decoded together; None: all."""

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh)

    def need(self, platform: str) -> MemoryNeed:
        """Returns the memory that each device needs; see `inference_need`."""
        return inference_need(
            self.config,
            context=self.context,
            rows=self.rows,
            lane=self.lane,
            mesh=self.mesh,
            dtype=self.dtype,
            cache=self.cache,
            platform=platform,
        )

    def fits(self, machine: Machine) -> bool:
        """Returns whether the plan fits devices like the machine's, of which it may take more."""
        room = machine.room(self.devices)
        return room is None or self.need(machine.platform).total <= room

    def capacity(self, machine: Machine) -> int:
        """Returns the tokens that each group of devices has room for in its cache.

        A group holds whole rows: the devices of one index of dp and fsdp. 0 if nothing fits, or if
        the memory of the devices is not known.
        """
        one_page_each = PAGE * self.mesh[3]
        fits = [0, 1]
        while fits[1] < _MOST_PAGES and self._holds(fits[1] * one_page_each, machine):
            fits = [fits[1], 2 * fits[1]]
        least, most = fits  # the first fits, the last does not
        while most - least > 1:
            middle = (least + most) // 2
            is_held = self._holds(middle * one_page_each, machine)
            least, most = (middle, most) if is_held else (least, middle)
        return least * one_page_each

    def _holds(self, tokens: int, machine: Machine) -> bool:
        one = dataclasses.replace(self, context=tokens, rows=self.mesh[0] * self.mesh[1])
        return machine.room(self.devices) is not None and one.fits(machine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """A plan that fits, offered in place of one that does not."""

    plan: Plan
    text: str
    """The command-line options to give, as part of a message."""


def require_fit(
    config: LlamaConfig,
    *,
    name: str,
    context: int,
    rows: int = 1,
    lane: int | None = None,
    mesh: MeshSizes,
    dtype: Held,
    cache: CacheDtype | None = None,
    machine: Machine,
    remedy: str | None = None,
) -> None:
    """Refuses a model that does not fit the devices.

    Args:
        config: The model.
        name: Name of the model in messages.
        context: Tokens of each row, read and written.
        rows: Rows in the cache.
        lane: Rows that are decoded together; by default all.
        mesh: dp, fsdp, tp, sp.
        dtype: Type of the weights, and, unless it is int8 or int4, of activations and cache.
        cache: Type of keys and values, if it is another one.
        machine: The devices; if their memory is not known, everything fits.
        remedy: What to suggest in place of a shorter context, where that is none.

    Raises:
        UserError: The model does not fit: the memory needed, the memory available, and the
            cheapest options that make it fit. Or the weights do not divide over the mesh.
    """
    plan = Plan(
        config=config,
        context=context,
        rows=rows,
        mesh=mesh,
        dtype=dtype,
        cache=cache,
        lane=lane,
    )
    need, room = plan.need(machine.platform), machine.room(plan.devices)
    if room is None or need.total <= room:
        return
    texts = [option.text for option in options(plan, machine, shorter=remedy is None)]
    if remedy is not None:
        texts.append(remedy)
    raise UserError(
        f"{name} needs {gigabytes(need.total)} a device for {context:,} tokens in {plan.dtype} "
        f"(weights {gigabytes(need.weights)}, cache {gigabytes(need.cache)}, activations "
        f"{gigabytes(need.activations)}), but the device has {gigabytes(room)}; "
        + (" or ".join(texts) if texts else NO_WAY)
    )


NO_WAY = "no mesh, type or context makes it fit; take devices with more memory"


def options(plan: Plan, machine: Machine, *, most: int = 3, shorter: bool = True) -> list[Option]:
    """Returns the cheapest changes that make a plan fit, the cheapest first.

    In order: another mesh of the devices here, which changes no answer; bfloat16; int8; int4; the
    longest context that fits; the fewest devices that suffice. Changes are joined where none of
    the first four is enough by itself.

    Args:
        plan: The plan that does not fit.
        machine: The devices.
        most: Options at most.
        shorter: Whether a shorter context may be among them.
    """
    types: tuple[Held, ...] = "bfloat16", "int8", "int4"
    stored = [dataclasses.replace(plan, dtype=each) for each in types if each != plan.dtype]
    here, more = (_meshes(plan, machine, more=more) for more in (False, True))
    found = [_first_fit(each, machine) for each in (_on(here, plan), *([one] for one in stored))]
    if not any(found):
        found = [_first_fit(_on(here, each), machine) for each in stored]
    joined = [] if any(found) else stored
    if shorter:
        cut = [_longest([each], machine) for each in (plan, *joined)]
        cut += [_longest(_on(here, each), machine) for each in (plan, *joined) if joined]
        found += _improving(cut, lambda each: -each.context)
    larger = [_first_fit(_on(more, each), machine) for each in (plan, *joined)]
    found += _improving(larger, lambda each: each.devices)
    plans = [each for each in found if each is not None][:most]
    return [Option(plan=each, text=_describe(plan, each, machine)) for each in plans]


def _improving(plans: Sequence[Plan | None], cost: Callable[[Plan], int]) -> Iterator[Plan]:
    """Yields the plans that cost less than all before them."""
    least = math.inf
    for plan in plans:
        if plan is not None and cost(plan) < least:
            least = cost(plan)
            yield plan


def _on(meshes: Sequence[MeshSizes], plan: Plan) -> list[Plan]:
    return [dataclasses.replace(plan, mesh=mesh) for mesh in meshes]


def _first_fit(plans: Sequence[Plan], machine: Machine) -> Plan | None:
    return next((each for each in plans if each.fits(machine)), None)


def _longest(plans: Sequence[Plan], machine: Machine) -> Plan | None:
    """Returns the plan that fits with the largest power of two of tokens; the first of several."""
    largest = (plans[0].context - 1).bit_length() - 1 if plans else 0
    for bits in range(largest, _LEAST_CONTEXT.bit_length() - 2, -1):
        shorter = [dataclasses.replace(plan, context=1 << bits) for plan in plans]
        if (found := _first_fit(shorter, machine)) is not None:
            return found
    return None


def _meshes(plan: Plan, machine: Machine, *, more: bool) -> list[MeshSizes]:
    """Returns meshes of the devices here, or of more, the fewest first.

    Heads, rows and tokens are split, in this order of preference: heads cost the least.
    """
    config, here = plan.config, machine.count
    splits = math.gcd(config.num_kv_heads, config.mlp_dim, config.tokens.rows)
    tps = [tp for tp in range(1, splits + 1) if splits % tp == 0]
    # Of sizes that leave a device equally many rows, the smallest.
    dps = [
        dp
        for dp in range(1, min(plan.rows, _MOST_DEVICES) + 1)
        if dp == 1 or -(-plan.rows // dp) < -(-plan.rows // (dp - 1))
    ]
    sps = [1 << bits for bits in range(SHORT.bit_length())]
    sizes = [
        (dp, 1, tp, sp)
        for dp, tp, sp in itertools.product(dps, tps, sps)
        if (here < dp * tp * sp <= _MOST_DEVICES if more else dp * tp * sp <= here)
    ]
    return sorted({*sizes} - {plan.mesh}, key=lambda mesh: (math.prod(mesh), mesh[3], mesh[0]))


def _describe(plan: Plan, other: Plan, machine: Machine) -> str:
    options = []
    if other.mesh != plan.mesh and other.devices <= machine.count:
        options.append(f"--mesh {mesh_text(other.mesh)}")
    if other.dtype != plan.dtype:
        options.append(f"--dtype {other.dtype}")
    if other.context != plan.context:
        options.append(f"--context {other.context}")
    if other.devices <= machine.count:
        return f"give {' '.join(options)}"
    devices = f"take {other.devices} devices of this size with --mesh {mesh_text(other.mesh)}"
    return " ".join([devices, *options])


def mesh_text(mesh: MeshSizes) -> str:
    """Formats a mesh as `--mesh` reads it."""
    return ",".join(map(str, mesh))


def gigabytes(count: int) -> str:
    """Formats bytes as decimal gigabytes."""
    return f"{count / 1e9:,.2f} GB"
