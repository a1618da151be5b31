"""Whether a model fits the devices, told before it is loaded, and what would make it fit."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

from lwm.devices import Machine
from lwm.errors import UserError
from lwm.model.config import LlamaConfig, Storage
from lwm.plan.memory import MemoryNeed, MeshSizes, inference_need

_MOST_DEVICES = 4096
_LEAST_CONTEXT = 1024
# What it costs to give way, the least first. A sum of some is below the next one, so that ways are
# in order by what is the worst of each.
_PLACE, _BFLOAT16, _INT8, _CONTEXT, _DEVICES = 1, 2, 4, 8, 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to run a model."""

    config: LlamaConfig
    context: int
    rows: int
    mesh: MeshSizes
    dtype: Storage

    @property
    def devices(self) -> int:
        """How many the mesh has."""
        return math.prod(self.mesh)

    def need(self, platform: str) -> MemoryNeed:
        """Returns what each device needs; see `inference_need`."""
        return inference_need(
            self.config,
            context=self.context,
            rows=self.rows,
            mesh=self.mesh,
            dtype=self.dtype,
            platform=platform,
        )

    def fits(self, machine: Machine) -> bool:
        """Returns whether devices like the machine's have room, also more than there are."""
        room = machine.room(self.devices)
        return room is None or self.need(machine.platform).total <= room


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """A plan that fits, in place of one that does not."""

    plan: Plan
    text: str
    """The options to give, in words for a message."""


def require_fit(
    config: LlamaConfig,
    *,
    name: str,
    context: int,
    rows: int = 1,
    mesh: MeshSizes,
    dtype: Storage,
    machine: Machine,
    shorter: bool = True,
) -> None:
    """Refuses a model that the devices have no room for.

    Args:
        config: The model.
        name: What to call it.
        context: Tokens of each row, read and written.
        rows: Prompts that are continued together.
        mesh: dp, fsdp, tp, sp.
        dtype: Type of the weights, and, unless it is int8, of activations and cache.
        machine: The devices; where what they have is not known, all fits.
        shorter: Whether less context is a way out; it is none where the prompts are there already.

    Raises:
        UserError: What is needed, what there is, and the cheapest ways to make it fit; or the
            weights do not divide over the mesh.
    """
    plan = Plan(config=config, context=context, rows=rows, mesh=mesh, dtype=dtype)
    need, room = plan.need(machine.platform), machine.room(plan.devices)
    if room is None or need.total <= room:
        return
    texts = [way.text for way in options(plan, machine, shorter=shorter)]
    if not shorter:
        texts.append("shorten the prompts or give fewer at a time")
    raise UserError(
        f"{name} needs {gigabytes(need.total)} a device for {context:,} tokens in {plan.dtype} "
        f"(weights {gigabytes(need.weights)}, cache {gigabytes(need.cache)}, activations "
        f"{gigabytes(need.activations)}), but the device has {gigabytes(room)}; "
        + (" or ".join(texts) if texts else NO_WAY)
    )


NO_WAY = "no mesh, type or context makes it fit; take devices with more memory"


def options(plan: Plan, machine: Machine, *, most: int = 3, shorter: bool = True) -> list[Option]:
    """Returns the cheapest changes that make a plan fit, the cheapest first.

    In order of cost: another mesh of devices that are here, which changes no answer; bfloat16;
    int8; less context, but as much as fits; more devices, but no more than it takes. Several are
    joined where one is not enough, and left out where fewer of them do as well.

    Args:
        plan: What does not fit.
        machine: The devices.
        most: Ways at most.
        shorter: Whether less context is among them.
    """
    found: list[tuple[int, Plan]] = []
    for cost, other in _changes(plan, machine):
        if cost & _CONTEXT and not shorter:
            continue
        if len(found) == most:
            break
        # Who would take more devices could as well use those here.
        given = cost | (_PLACE if cost & _DEVICES else 0)
        fewer = (before for had, before in found if had & given == had or had & cost & _CONTEXT)
        if not any(_is_as_good(before, other, machine) for before in fewer):
            found.append((cost, other))
    return [Option(plan=other, text=_describe(plan, other, machine)) for _, other in found]


def _changes(plan: Plan, machine: Machine) -> Iterator[tuple[int, Plan]]:
    """Yields plans that fit, by cost: of each kind of change the one that takes least."""
    for cost in range(1, 2 * _DEVICES):
        both = _BFLOAT16 | _INT8
        both_places = _PLACE | _DEVICES
        if cost & both == both or cost & both_places == both_places:
            continue
        if found := _least(plan, cost, machine):
            yield cost, found


def _least(plan: Plan, cost: int, machine: Machine) -> Plan | None:
    stored = plan
    if cost & (_BFLOAT16 | _INT8):
        stored = dataclasses.replace(plan, dtype="int8" if cost & _INT8 else "bfloat16")
        if stored.dtype == plan.dtype:
            return None
    meshes: Iterable[MeshSizes] = [plan.mesh]
    if cost & (_PLACE | _DEVICES):
        meshes = _meshes(plan, machine, more=bool(cost & _DEVICES))
    placed = (dataclasses.replace(stored, mesh=mesh) for mesh in meshes)
    if not cost & _CONTEXT:
        return next((each for each in placed if each.fits(machine)), None)
    fitting = [each for one in placed if (each := _shortened(one, machine))]
    # Of equal contexts the first, which takes the fewest devices.
    return max(fitting, key=lambda each: each.context, default=None)


def _shortened(plan: Plan, machine: Machine) -> Plan | None:
    """Returns the plan with the largest power of two of tokens that fits, if one does."""
    least = dataclasses.replace(plan, context=_LEAST_CONTEXT)
    if plan.context <= _LEAST_CONTEXT or not least.fits(machine):
        return None
    context = 1 << (plan.context - 1).bit_length()
    while (context := context // 2) > _LEAST_CONTEXT:
        shorter = dataclasses.replace(plan, context=context)
        if shorter.fits(machine):
            return shorter
    return least


def _meshes(plan: Plan, machine: Machine, *, more: bool) -> Iterator[MeshSizes]:
    """Yields meshes of the devices here, or of more, fewest first; heads and rows are split."""
    config, here = plan.config, machine.count
    splits = math.gcd(config.num_kv_heads, config.mlp_dim, config.tokens.rows)
    tps = [tp for tp in range(1, splits + 1) if splits % tp == 0]
    # Of all that leave a device as many rows, the least.
    dps = [
        dp
        for dp in range(1, min(plan.rows, _MOST_DEVICES) + 1)
        if dp == 1 or -(-plan.rows // dp) < -(-plan.rows // (dp - 1))
    ]
    sizes = [
        (dp, 1, tp, 1)
        for dp, tp in itertools.product(dps, tps)
        if (here < dp * tp <= _MOST_DEVICES if more else dp * tp <= here)
    ]
    for mesh in sorted(sizes, key=lambda mesh: (mesh[0] * mesh[2], mesh[0])):
        if mesh != plan.mesh:
            yield mesh


def _is_as_good(cheaper: Plan, plan: Plan, machine: Machine) -> bool:
    """Says whether what is cheaper has as long a context, and asks for no more devices."""
    asked = (max(each.devices, machine.count) for each in (cheaper, plan))
    return cheaper.context >= plan.context and next(asked) <= next(asked)


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
    """Writes a mesh as `--mesh` reads it."""
    return ",".join(map(str, mesh))


def gigabytes(count: int) -> str:
    """Writes bytes as a number of 10⁹, with as many digits as say something."""
    return f"{count / 1e9:,.2f} GB"
