"""`lwm plan RECIPE`: memory and time of a recipe's programs on devices that are not there."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, get_args

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from lwm.cli.common import print_line, print_table
from lwm.errors import UserError
from lwm.generate.abstract import generation_programs
from lwm.model.config import Dtype, LlamaConfig
from lwm.plan.chips import Chip, read_slice
from lwm.plan.compiled import Compiled, Refused, compile_program
from lwm.plan.flops import known_peak, training_flops
from lwm.plan.hlo import KINDS
from lwm.plan.memory import MeshSizes, inference_need
from lwm.plan.program import Program
from lwm.sharding import AXES, make_mesh, parse_mesh
from lwm.train.abstract import require_trainable, training_programs
from lwm.train.config import Curriculum, Run, Stage
from lwm.train.cost import MFU, Cost
from lwm.train.planned import memory_of, planned
from lwm.train.vqgan.config import VQGANRun

Name = Literal["init", "update", "reading", "decoding"]
NAMES: tuple[Name, ...] = get_args(Name)

ABOUT = "Reports the memory and time of a recipe on devices that are not there; trains nothing."


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Devices to plan for; without `topology` the memory is estimated, at once."""

    topology: str | None = None
    """Slice of TPU to compile for, such as v4:8x8x4. Each program takes minutes, and TPU's compiler
    must be installed: pip install 'lwm[tpu-plan]'."""
    devices: int | None = None
    """Number of devices for a mesh with -1, where no topology has it."""
    memory: float | None = None
    """GB (10⁹ bytes) of each device, where no topology has them."""
    mfu: float = MFU
    """Share of the chips' peak in the expected time."""
    programs: tuple[Name, ...] = NAMES
    """Programs to compile; `init` is left out where weights are read."""
    only: tuple[str, ...] = ()
    """Stages of a curriculum; by default all."""

    def __post_init__(self):
        """Refuses values out of range, and those that a topology has itself."""
        for option, value in (("--devices", self.devices), ("--memory", self.memory)):
            if value is not None and not 0 < value < 10**12:
                raise UserError(f"{option} is {value}, but must be above 0 and below {10**12:,}")
            if value is not None and self.topology is not None:
                raise UserError(
                    f"--topology {self.topology} has its own {option[2:]}; leave it out"
                )
        if not 0 < self.mfu <= 1:
            raise UserError(f"--mfu is {self.mfu}, but must be above 0 and at most 1")


def plan_recipe(name: str, recipe: Run | Curriculum | VQGANRun, options: PlanOptions) -> None:
    """Prints what a recipe needs, stage by stage.

    Raises:
        UserError: It is of a VQGAN, a stage does not fit the mesh, or TPU's compiler is missing.
    """
    stages = planned(name, recipe)
    if unknown := [each for each in options.only if each not in {s.name for s, _ in stages}]:
        there = ", ".join(stage.name for stage, _ in stages)
        raise UserError(f"--only {unknown[0]} is no stage of {name}; there are {there}")
    if options.only:
        stages = [each for each in stages if each[0].name in options.only]
    if options.topology is None:
        _print_estimates(stages, options)
    else:
        _print_compiled(stages, options)


def _print_estimates(stages: Sequence[tuple[Stage, Cost]], options: PlanOptions) -> None:
    room = None if options.memory is None else options.memory * 1e9
    titles = "stage", "rows", "tokens", "mesh", "state", "saved", "work", "update", "host", "answer"
    table: list[tuple[str, ...]] = [titles if room is None else (*titles, "fits")]
    for stage, cost in stages:
        run, sizes = stage.run, _sizes(stage.run.mesh, options.devices)
        explicit = (AxisType.Explicit,) * len(AXES)
        require_trainable(run, cost.model, AbstractMesh(sizes, AXES, axis_types=explicit))
        need, answer = memory_of(run, cost.model, sizes), _answering(run, cost.model, sizes)
        found = need.state, need.saved, need.work, need.total, need.host, answer
        row = (*_described(stage, sizes), *map(gib, found))
        table.append(row if room is None else (*row, "yes" if need.total <= room else "no"))
    print_table(table, numbers=True)
    print()
    print_line(
        "GiB of each device, estimated; an update takes the state (weights and optimizer), what "
        "layers save for the backward pass, and work, and host memory for offload; an answer takes "
        "weights and the cache of a whole context; --topology asks TPU's compiler"
    )


def _answering(run: Run, model: LlamaConfig, sizes: MeshSizes) -> int | None:
    """Returns the memory to continue one row in each group of devices; None if they cannot."""
    try:
        return inference_need(
            model,
            context=model.max_context,
            rows=sizes[0] * sizes[1],
            mesh=sizes,
            dtype=run.compute.dtype,
            platform="tpu",
        ).total
    except UserError:  # the smallest chunk of a prompt does not divide over sp
        return None


def _sizes(mesh: str, devices: int | None) -> MeshSizes:
    if devices is None and "-1" in mesh:
        raise UserError(
            f"mesh {mesh!r} has an open size; give --devices, the number of all, or --topology, "
            "such as v4:8x8x4"
        )
    return parse_mesh(mesh, 10**12 if devices is None else devices)


def _described(stage: Stage, sizes: Sequence[int]) -> tuple[str, ...]:
    data = stage.run.data
    rows, length = data.rows * stage.run.training.accumulate, data.packing.length
    return stage.name, f"{rows:,}", f"{length:,}", ",".join(map(str, sizes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A program of a stage, and what the compiler says of it."""

    stage: str
    program: str
    mesh: str
    found: Compiled | Refused
    estimate: int | None
    """Bytes of a device, without the compiler; None if none is made."""
    flops: float | None
    """Of each chip, without rematerialisation: an update, reading a whole context, or one id."""
    dtype: Dtype
    """Type of the computation."""


def compiled_programs(
    stages: Sequence[tuple[Stage, Cost]],
    devices: Sequence[jax.Device],
    names: Collection[str] = NAMES,
) -> Iterator[Line]:
    """Compiles the programs of stages, one after another.

    `init` is left out where weights are read from a model: that of the stage before, or another.

    Raises:
        UserError: A stage does not fit its mesh, or that the devices; before any is compiled.
    """
    meshes = [make_mesh(stage.run.mesh, devices) for stage, _ in stages]
    for (stage, cost), mesh in zip(stages, meshes, strict=True):
        require_trainable(stage.run, cost.model, mesh)
    for number, ((stage, cost), mesh) in enumerate(zip(stages, meshes, strict=True)):
        reads = number > 0 or stage.run.init is not None
        wanted = {*names} - {"init"} if reads else {*names}
        for program in _programs(stage.run, cost.model, mesh, wanted):
            sizes = mesh.devices.shape
            flops = _flops(program.name, stage.run, cost, rows=sizes[0] * sizes[1])
            yield Line(
                stage=stage.name,
                program=program.name,
                mesh=",".join(map(str, sizes)),
                found=compile_program(program, mesh),
                estimate=_estimate(program.name, stage.run, cost.model, sizes),
                flops=None if flops is None else flops / mesh.size,
                dtype=stage.run.compute.dtype,
            )


def _programs(
    run: Run, model: LlamaConfig, mesh: Mesh, names: Collection[str]
) -> Iterator[Program]:
    makers = []
    if {"init", "update"} & {*names}:
        makers.append(lambda: training_programs(run, model, mesh))
    if {"reading", "decoding"} & {*names}:
        makers.append(lambda: generation_programs(model, run.compute, mesh))
    for make in makers:
        yield from (program for program in make() if program.name in names)


def _estimate(program: str, run: Run, model: LlamaConfig, sizes: MeshSizes) -> int | None:
    if program == "update":
        return memory_of(run, model, sizes).total
    return None if program == "init" else _answering(run, model, sizes)


def _flops(program: str, run: Run, cost: Cost, *, rows: int) -> float | None:
    context = cost.model.max_context
    match program:
        case "update":
            return cost.flops / run.training.steps
        case "reading":
            pairs = rows * context * (context + 1) / 2
            return training_flops(cost.model, tokens=rows * context, pairs=pairs) / 3
        case "decoding":
            return training_flops(cost.model, tokens=rows, pairs=1.0 * rows * context) / 3
    return None


def _print_compiled(stages: Sequence[tuple[Stage, Cost]], options: PlanOptions) -> None:
    assert options.topology is not None
    chips = read_slice(options.topology)
    lines = []
    for line in compiled_programs(stages, chips.devices(), options.programs):
        shown = "refused"
        if isinstance(line.found, Compiled):
            peak = line.found.peak
            shown = "within the chip's memory" if peak is None else f"{gib(peak)} GiB"
        after = f"after {line.found.seconds:.0f} s of compiling"
        print_line(f"lwm: {line.stage}, {line.program}: {shown} {after}", error=True)
        lines.append(line)
    titles = "arguments", "temporaries", "held", "peak", "fits", "estimate", "FLOPs", "seconds"
    table = [("stage", "program", "mesh", *titles)]
    table += [(*_name(line), line.mesh, *_cells(line, chips.chip, options.mfu)) for line in lines]
    print_table(table, numbers=True)
    moved = [line for line in lines if isinstance(line.found, Compiled) and line.found.collectives]
    if moved:
        print()
        print_table([("stage", "program", *KINDS), *map(_moved, moved)], numbers=True)
    print()
    for line in lines:
        if isinstance(line.found, Refused):
            print_line(f"{line.stage}, {line.program} does not compile: {line.found.reason}")
    print_line(
        f"GiB of each of {chips.count} chips {chips.chip.kind}, of {gib(chips.chip.memory)}; held "
        "is not of the program; collectives: how many of a chip, and GiB of their results. FLOPs "
        "are a chip's for an update, for reading a whole context, and for one id; seconds are at "
        f"{options.mfu:.0%} of the peak in the type of the computation"
    )


def _name(line: Line) -> tuple[str, str]:
    return line.stage, line.program


def _cells(line: Line, chip: Chip, mfu: float) -> list[str]:
    found, flops, chip_peak = line.found, line.flops, known_peak(chip.kind, line.dtype)
    memory, fits = [None] * 4, False
    if isinstance(found, Compiled):
        memory = [found.arguments, found.temporaries, found.held, found.peak]
        fits = found.peak is None or found.peak <= chip.memory
    seconds = None
    if flops is not None and chip_peak is not None and line.program != "decoding":
        seconds = f"{flops / (chip_peak * mfu):,.3g}"  # an id takes as long as memory does
    return [
        *(gib(each) for each in memory),
        "yes" if fits else "no",
        gib(line.estimate),
        "-" if flops is None else f"{flops:.3g}",
        seconds or "-",
    ]


def _moved(line: Line) -> tuple[str, ...]:
    assert isinstance(line.found, Compiled)
    each = [line.found.collectives.get(kind) for kind in KINDS]
    return *_name(line), *("-" if c is None else f"{c.count:,}: {gib(c.bytes)}" for c in each)


def gib(count: int | None) -> str:
    """Formats bytes as a number of GiB."""
    if count is None:
        return "-"
    return f"{count / 2**30:,.2f}" if count >= 2**30 / 10 else f"{count / 2**30:.2g}"
