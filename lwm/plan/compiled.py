"""Compiling programs for devices that are not there, and what the compiler says of each."""

import dataclasses
import re
import time

import jax
from jax.sharding import Mesh

from lwm.plan.hlo import Collective, collectives
from lwm.plan.program import Program, used


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """Bytes of a device that a program takes."""

    arguments: int
    temporaries: int
    """All that the program allocates, results that replace no argument included."""
    peak: int | None
    """Most that is in use at a time, arguments and what the program does not get included. None of
    a program that offloads to the host: the compiler counts both, and still refuses what exceeds
    the device."""
    held: int
    """The part that the program does not get."""
    collectives: dict[str, Collective]
    seconds: float
    """Time to compile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refused:
    """A program that the compiler refuses."""

    reason: str
    """In one line."""
    seconds: float


def compile_program(program: Program, mesh: Mesh) -> Compiled | Refused:
    """Compiles a program for the devices of a mesh."""
    begun = time.perf_counter()
    with used(mesh):
        lowered = program.function.lower(*program.arguments, **program.options)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return Refused(reason=_reason(str(error)), seconds=time.perf_counter() - begun)
    seconds = time.perf_counter() - begun
    memory = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.peak_memory_in_bytes + program.held
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + new,
        peak=None if memory.host_temp_size_in_bytes else peak,
        held=program.held,
        collectives=collectives(compiled.as_text()),
        seconds=seconds,
    )


def _reason(message: str) -> str:
    """Returns the first line of a compiler's message, from its bytes on if it is about memory."""
    first = message.strip().partition("\n")[0]
    return re.sub(r"^RESOURCE_EXHAUSTED:.*?(?=Ran out of memory)", "", first)
