"""`lwm plan`: memory that a model needs, without the model and without the devices."""

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lwm.cli.common import print_line, print_table
from lwm.errors import UserError
from lwm.files import read_json
from lwm.hub import catalog
from lwm.model.config import PRESETS, ModelOverrides, preset

if TYPE_CHECKING:
    from lwm.devices import Machine
    from lwm.model.config import LlamaConfig
    from lwm.plan.fit import Plan
    from lwm.plan.memory import MeshSizes

_TOO_MUCH = 10**12
_CONTEXTS = tuple(1024 * each for each in (4, 32, 128, 256, 512, 1024))

Table = list[tuple[str, ...]]


def plan(
    model: Annotated[str, tyro.conf.Positional],
    /,
    *,
    context: int | None = None,
    rows: int = 1,
    mesh: str = "1,1,1,1",
    dtype: Literal["float32", "bfloat16", "int8", "int4", "q4_1", "q5_0", "q5_1"] = "float32",
    cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None,
    memory: float | None = None,
    config: str | None = None,
    theta: float | None = None,
    codes: int | None = None,
    rope_scaling: str | None = None,
) -> None:
    """Reports whether a model, or a recipe's training, fits given devices; loads nothing.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, a hub's org/name, a
            run, or one of LWM's sizes, such as 7b. Or a recipe: `lwm plan lwm-text-1m --help`
            shows its own options.
        context: Tokens of prompt and answer; by default, several up to the model's own.
        rows: Prompts in a batch.
        mesh: Devices: dp,fsdp,tp,sp such as 1,1,32,1, or tp=32.
        dtype: Type of weights and computation; those of fewer bits than 16 are computed in float32,
            and are GGUF's: int8 is Q8_0, and int4 is Q4_0.
        cache_dtype: Type of keys and values in the cache; by default that of `dtype`, and bfloat16
            beside weights of few bits.
        memory: GB (10⁹ bytes) of each GPU or TPU; by default, that of this machine's devices.
        config: For LWM's own files: a preset such as 7b, or json::FILE or pickle::FILE.
        theta: RoPE's base, for files that lack it; needs no memory.
        codes: For LWM's own files: entries of the vision codebook; needs no memory.
        rope_scaling: RoPE scaling as for `lwm chat`; needs no memory.
    """
    for option, value in (("--context", context), ("--rows", rows), ("--memory", memory)):
        if value is not None and not 0 < value < _TOO_MUCH:
            raise UserError(f"{option} is {value}, but must be above 0 and below {_TOO_MUCH:,}")
    from lwm.plan.fit import Plan
    from lwm.plan.memory import require_divisible_weights

    given = ModelOverrides(
        config=config, theta=theta, context=context, codes=codes, rope_scaling=rope_scaling
    )
    shape, sizes = _config(model, given), _read_mesh(mesh)
    require_divisible_weights(shape, sizes)
    own = shape.max_context
    asked = Plan(
        config=shape,
        context=context or own,
        rows=rows,
        mesh=sizes,
        dtype=dtype,
        cache=cache_dtype,
    )
    machine = _machine(asked.devices, memory)
    if context is None:
        contexts = [each for each in _CONTEXTS if each < own] + [own]
        table = _by_context(asked, machine, contexts)
    else:
        table = _by_part(asked, machine)
    print_line(f"{model} in {dtype}; devices: {asked.devices}; prompts at a time: {rows}")
    print()
    print_table(table, numbers=True)
    print("\n" + "\n".join(_verdict(asked, machine)))


def _config(model: str, given: ModelOverrides) -> "LlamaConfig":
    """Finds the shape of a model: LWM's by name, others from the headers of their files.

    Only `config.json` of a hub's model is downloaded. The context is the model's own, if its files
    say one.
    """
    from lwm.convert.lwm_config import known_config

    if model in PRESETS and not os.path.exists(model):
        return preset(model)
    own = dataclasses.replace(given, context=None)
    entry = catalog.known(model)
    if entry and (known := known_config(entry)) and given.config is None:
        return known
    if file := catalog.fetch_config(model):
        from lwm.convert.huggingface import read_config

        return own.applied(read_config(read_json(file), source=model))
    from lwm.convert.open import open_model_files

    try:
        return open_model_files(model, given=own).config
    except UserError:
        if given.context is None:
            raise
        # LWM's files may lack a context.
        return open_model_files(model, given=given).config


def _read_mesh(text: str) -> "MeshSizes":
    from lwm.sharding import parse_mesh

    if "-1" in text:
        raise UserError(
            f"mesh {text!r} has an open size, but a plan is for a known number of devices; "
            "write the number in place of -1"
        )
    return parse_mesh(text, sys.maxsize)


def _machine(used: int, memory: float | None) -> "Machine":
    from lwm.devices import Machine, machine

    if memory is not None:
        return Machine(count=used, memory=int(memory * 1e9), platform="gpu")
    here = machine()
    if used <= here.count:
        return here
    # The memory of devices that are not on this machine is unknown.
    return Machine(count=used, memory=None, platform="gpu")


def _by_part(plan: "Plan", machine: "Machine") -> Table:
    from lwm.plan.fit import gigabytes

    need = plan.need(machine.platform)
    parts = dataclasses.asdict(need) | {"total": need.total}
    return [
        ("", "A DEVICE", "ALL DEVICES"),
        *(
            (part, gigabytes(count), gigabytes(count * plan.devices))
            for part, count in parts.items()
        ),
    ]


def _by_context(plan: "Plan", machine: "Machine", contexts: list[int]) -> Table:
    from lwm.plan.fit import gigabytes

    known = machine.room(plan.devices) is not None
    titles = "CONTEXT", "WEIGHTS", "CACHE", "ACTIVATIONS", "A DEVICE", "ALL DEVICES"
    table: Table = [(*titles, "FITS")] if known else [titles]
    for context in contexts:
        one = dataclasses.replace(plan, context=context)
        need = one.need(machine.platform)
        counts = need.weights, need.cache, need.activations, need.total, need.total * plan.devices
        fits = ("yes" if one.fits(machine) else "no",) if known else ()
        table.append((f"{context:,}", *map(gigabytes, counts), *fits))
    return table


def _verdict(plan: "Plan", machine: "Machine") -> list[str]:
    from lwm.plan.fit import NO_WAY, gigabytes, options

    lines = []
    if plan.context > plan.config.max_context:
        lines.append(f"The model was trained for {plan.config.max_context:,} tokens.")
    room = machine.room(plan.devices)
    if room is None:
        return [*lines, "The memory of the devices is not known: give --memory, in GB of each."]
    fits = plan.fits(machine)
    lines.append(
        f"A device has {gigabytes(room)}: {plan.context:,} tokens {'' if fits else 'do not '}fit."
    )
    if fits:
        groups = plan.mesh[0] * plan.mesh[1]
        of = (
            f" of each of {groups} groups of {plan.devices // groups} devices" if groups > 1 else ""
        )
        return [*lines, f"The cache{of} has room for {plan.capacity(machine):,} tokens."]
    found = [way.text for way in options(plan, machine)]
    return [*lines, "To make them fit:", *(f"  {text}" for text in found or [NO_WAY])]
