"""Compiles the programs of recipes for TPU slices that are not there, and compares the estimates.

    pip install -e '.[tpu-plan]'
    python benchmarks/pods.py                                    # recipes, and some larger steps
    python benchmarks/pods.py --only lwm-text-1m 7b-1m           # some of them
    python benchmarks/pods.py --programs reading decoding --only 7b-answers
    python benchmarks/pods.py --table                            # what is there, nothing compiled

Nothing is allocated or run: TPU's own compiler says what a chip holds. A program takes from seconds
to half an hour of two cores and gigabytes of memory, so each is compiled in a process of its own,
one after another. Results are lines of JSON; a program that is there is not compiled again.
"""

import dataclasses
import importlib.metadata
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from lwm.eval.markdown import markdown_table
from lwm.model.config import Compute, LlamaConfig, Remat, Rope, preset
from lwm.plan.chips import read_slice
from lwm.plan.fit import mesh_text
from lwm.plan.memory import inference_need
from lwm.recipes import RECIPES
from lwm.sharding import make_mesh, parse_mesh
from lwm.tokens import TokenSpace
from lwm.train.config import Curriculum, Run
from lwm.train.planned import memory_of, planned
from lwm.train.vqgan.config import VQGANRun

Program = Literal["init", "update", "reading", "decoding"]
PROGRAMS: tuple[Program, ...] = get_args(Program)

_K, _M = 1024, 1024 * 1024
_GIB = 2**30
_TEXT, _VISION, _SMALL = "v4:8x8x4", "v4:8x8x8", "v4:2x2x1"
"""Slices of the recipes: v4-512 and v4-1024, whose numbers count the cores, as in the paper."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A run to compile."""

    name: str
    topology: str
    run: Run
    model: LlamaConfig
    programs: tuple[Program, ...] = PROGRAMS

    @property
    def key(self) -> Any:
        """All that the size of its programs depends on."""
        run = self.run
        optimizer = run.training.optimizer
        shape = dataclasses.replace(self.model, rope=Rope(), norm_eps=1e-6, init_std=1.0)
        types = optimizer.moment_dtype, optimizer.second_moment_dtype
        sizes = run.data.rows, run.data.packing.length, run.training.accumulate
        return self.topology, shape, run.compute, run.mesh, sizes, types, run.training.layout


def of_recipe(name: str, recipe: Run | Curriculum | VQGANRun) -> Iterator[Case]:
    """Yields the stages of a recipe of a language model."""
    for stage, cost in planned(name, recipe):
        small = cost.model.dim < _K
        topology = _SMALL if small else _VISION if cost.model.tokens.vision else _TEXT
        full = name if stage.name == name else f"{name}/{stage.name}"
        yield Case(name=full, topology=topology, run=stage.run, model=cost.model)


def step(
    name: str,
    length: int,
    *,
    model: LlamaConfig | None = None,
    rows: int = 4,
    mesh: str = "1,4,16,4",
    topology: str = _TEXT,
    remat: Remat = "full",
    chunk: int = 1024,
) -> Case:
    """Returns a step in bfloat16; its weights and moments are float32."""
    run = RECIPES["lwm-text-1m"]()
    assert isinstance(run, Run)
    packing = dataclasses.replace(run.data.packing, length=length)
    run = dataclasses.replace(
        run,
        init=None,
        compute=Compute(dtype="bfloat16", remat=remat, mlp_chunk=chunk, loss_chunk=chunk),
        data=dataclasses.replace(run.data, rows=rows, packing=packing),
        mesh=mesh,
    )
    shape = dataclasses.replace(model or _7B, max_context=length)
    return Case(name=name, topology=topology, run=run, model=shape)


_7B = preset("7b", tokens=TokenSpace(text=32_000, vision=8448, codes=8192))
_13B = preset("13b", tokens=_7B.tokens)
_LLAMA3 = dataclasses.replace(_7B, tokens=TokenSpace(text=128_256), num_kv_heads=8, mlp_dim=14_336)

STEPS = (
    step("7b-32k", 32 * _K, remat="attention"),
    step("7b-128k", 128 * _K, remat="attention"),
    step("7b-128k-full", 128 * _K),
    step("7b-1m", _M),
    step("7b-1m-attention", _M, remat="attention"),
    step("7b-4m", 4 * _M, mesh="1,4,8,8"),
    step("7b-8m-offload", 8 * _M, mesh="1,4,8,8", remat="offload"),
    step("13b-1m", _M, model=_13B, mesh="1,4,8,8"),
    step("llama3-8b-1m", _M, model=_LLAMA3, mesh="1,4,8,8"),
    dataclasses.replace(
        step("7b-answers", _M, rows=1, mesh="1,1,4,8", topology="v4:2x4x4"),
        programs=("reading", "decoding"),
    ),
)
"""Steps of no recipe, and one for its programs of answering: a row of a million tokens."""


def cases() -> list[Case]:
    """Returns all cases; of those that have the same programs, the first."""
    made = ((name, recipe()) for name, recipe in RECIPES.items())
    every = [
        case
        for name, recipe in made
        if not isinstance(recipe, VQGANRun)
        for case in of_recipe(name, recipe)
    ]
    found = {case.key: case for case in reversed([*every, *STEPS])}
    return list(found.values())[::-1]


def compiled(case: Case, program: Program) -> dict[str, Any]:
    """Compiles a program in this process, and returns its line."""
    from lwm.generate.abstract import generation_programs
    from lwm.plan.compiled import Refused, compile_program
    from lwm.train.abstract import training_programs

    mesh = make_mesh(case.run.mesh, read_slice(case.topology).devices())
    if program in ("init", "update"):
        programs = training_programs(case.run, case.model, mesh)
    else:
        programs = generation_programs(case.model, case.run.compute, mesh)
    (chosen,) = (each for each in programs if each.name == program)
    found = compile_program(chosen, mesh)
    line = {
        "case": case.name,
        "program": program,
        "topology": case.topology,
        "mesh": mesh.devices.shape,
        "rows": case.run.data.rows,
        "length": case.run.data.packing.length,
        "dtype": case.run.compute.dtype,
        "remat": case.run.compute.remat,
        "accumulate": case.run.training.accumulate,
        "libtpu": importlib.metadata.version("libtpu"),
        "jax": importlib.metadata.version("jax"),
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if isinstance(found, Refused):
        return line | {"refused": found.reason, "seconds": found.seconds}
    return line | dataclasses.asdict(found)


def apart(case: Case, program: Program, minutes: float) -> dict[str, Any]:
    """Compiles a program in a process of its own, whose end frees its memory; returns its line."""
    line: dict[str, Any] = {"case": case.name, "program": program}
    command = [sys.executable, __file__, "--only", case.name, "--programs", program, "--here"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        return line | {"refused": f"it does not compile within {minutes:g} minutes"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return line | {"refused": f"it ends with code {done.returncode}: {last[:300]}"}
    return json.loads(done.stdout.splitlines()[-1])


def read(file: Path) -> list[dict[str, Any]]:
    """Returns the lines of a file of results; none if it is not there."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def sizes_of(case: Case) -> tuple[int, int, int, int]:
    """Returns the sizes of a case's mesh on its slice."""
    return parse_mesh(case.run.mesh, read_slice(case.topology).count)


def estimate(case: Case, program: Program) -> int | None:
    """Returns what `lwm plan` says without a compiler, in bytes of a chip; None of `init`."""
    if program == "update":
        return memory_of(case.run, case.model, sizes_of(case)).total
    if program == "init":
        return None
    dp, fsdp, *_ = sizes_of(case)
    context, dtype = case.model.max_context, case.run.compute.dtype
    need = inference_need(
        case.model,
        context=context,
        rows=dp * fsdp,
        mesh=sizes_of(case),
        dtype=dtype,
        platform="tpu",
    )
    return need.total


def table(lines: Sequence[dict[str, Any]], program: Program) -> str:
    """Returns a table of results of a program in the order of the cases, and why some have none.

    Of several lines of a case the last counts.
    """
    found = {line["case"]: line for line in lines if line["program"] == program}
    titles = "case", "slice", "mesh", "rows × tokens", "type, remat"
    sizes = "arguments", "temporaries", "peak", "estimate", "difference", "compiled in"
    rows: list[tuple[str, ...]] = [(*titles, *sizes)]
    notes = []
    for case in cases():
        if (line := found.get(case.name)) is None:
            continue
        data, compute, expected = case.run.data, case.run.compute, estimate(case, program)
        row = (
            case.name,
            case.topology,
            mesh_text(sizes_of(case)),
            f"{data.rows:,} × {data.packing.length:,}",
            f"{compute.dtype}, {compute.remat}",
        )
        seconds = f"{line['seconds']:.0f} s" if "seconds" in line else "–"
        if "refused" in line:
            notes.append(f"{case.name}: {line['refused']}")
            rows.append((*row, "–", "–", "refused", gib(expected), "–", seconds))
            continue
        if line["peak"] is None:
            notes.append(f"{case.name}: the compiler counts what lies on the host, too; it fits.")
        difference = "–"
        if expected is not None and line["peak"] is not None:
            difference = f"{expected / line['peak'] - 1:+.0%}"
        shown = (gib(line[each]) for each in ("arguments", "temporaries", "peak"))
        rows.append((*row, *shown, gib(expected), difference, seconds))
    return "\n\n".join([markdown_table(rows, words=True), *notes])


def gib(count: int | None) -> str:
    """Formats bytes as GiB."""
    if count is None:
        return "–"
    return f"{count / _GIB:.2f}" if count >= _GIB / 10 else f"{count / _GIB:.4f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Choice of the programs to compile, and of the files of results."""

    out: Path = Path(__file__).parent / "results" / "pods-tpu.jsonl"
    """Results, beside which the table is written, too."""
    docs: Path | None = None
    """A page whose table of results is replaced, such as docs/parallelism.md."""
    only: tuple[str, ...] = ()
    """Names of cases; by default all."""
    programs: tuple[Program, ...] = ("update",)
    minutes: float = 60
    """Longest time of a program."""
    again: bool = False
    """Compile also what is there."""
    table: bool = False
    """Only write the tables of what is there."""
    list: bool = False
    """Only list the cases."""
    here: bool = False
    """Compile in this process, and only print the lines."""


BEGINS, ENDS = "<!-- pods -->", "<!-- /pods -->"
"""Marks of the table in a page."""


def main(options: Options) -> None:
    """Compiles, and writes lines and tables."""
    chosen = [case for case in cases() if not options.only or case.name in options.only]
    if unknown := {*options.only} - {case.name for case in chosen}:
        sys.exit(f"no case is called {', '.join(sorted(unknown))}; --list shows all")
    work = [(case, name) for case in chosen for name in options.programs if name in case.programs]
    if options.list:
        print(*(case.name for case in chosen), sep="\n")
    elif options.here:
        for case, program in work:
            print(json.dumps(compiled(case, program)))
    else:
        for case, program in () if options.table else work:
            add(case, program, options)
        write_tables(options)


def add(case: Case, program: Program, options: Options) -> None:
    """Compiles a program and adds its line, if there is none yet."""
    there = {(line["case"], line["program"]) for line in read(options.out)}
    if (case.name, program) in there and not options.again:
        return
    line = apart(case, program, options.minutes)
    shown = line.get("refused") or f"{gib(line['peak'])} GiB in {line['seconds']:.0f} s"
    print(f"{case.name}, {program}: {shown}", flush=True)
    with options.out.open("a") as file:
        file.write(json.dumps(line) + "\n")


def write_tables(options: Options) -> None:
    """Writes the tables of all programs that have lines, and that of updates into a page."""
    lines = read(options.out)
    tables = {
        name: table(lines, name) for name in PROGRAMS if any(x["program"] == name for x in lines)
    }
    text = "\n\n".join(f"## {name}\n\n{found}" for name, found in tables.items())
    print(text)
    options.out.with_suffix(".md").write_text(f"{text}\n")
    if options.docs is not None and "update" in tables:
        before, _, rest = options.docs.read_text().partition(BEGINS)
        _, _, after = rest.partition(ENDS)
        page = f"{before}{BEGINS}\n\n{tables['update']}\n\n{ENDS}{after}"
        options.docs.write_text(page)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
