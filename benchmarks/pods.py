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
from typing import Any, Literal

from lwm.eval.markdown import markdown_table
from lwm.model.config import Compute, LlamaConfig, Remat, Rope, preset
from lwm.recipes import RECIPES
from lwm.tokens import TokenSpace
from lwm.train.config import Run
from lwm.train.planned import memory_of, planned
from lwm.train.vqgan.config import VQGANRun

Program = Literal["init", "update", "reading", "decoding"]

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

    @property
    def key(self) -> Any:
        """All that the size of its programs depends on."""
        run = self.run
        optimizer = run.training.optimizer
        shape = dataclasses.replace(self.model, rope=Rope(), norm_eps=1e-6, init_std=1.0)
        types = optimizer.moment_dtype, optimizer.second_moment_dtype
        sizes = run.data.rows, run.data.packing.length, run.training.accumulate
        return self.topology, shape, run.compute, run.mesh, sizes, types, run.training.layout


def of_recipes() -> Iterator[Case]:
    """Yields the stages of all recipes of language models."""
    for name, recipe in RECIPES.items():
        made = recipe()
        if isinstance(made, VQGANRun):
            continue
        for stage, cost in planned(name, made):
            small = cost.model.dim < 1024
            slice_ = _SMALL if small else _VISION if cost.model.tokens.vision else _TEXT
            full = name if stage.name == name else f"{name}/{stage.name}"
            yield Case(name=full, topology=slice_, run=stage.run, model=cost.model)


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
    step("7b-4m", 4 * _M),
    step("7b-8m-offload", 8 * _M, remat="offload"),
    step("13b-1m", _M, model=_13B, mesh="1,4,8,8"),
    step("llama3-8b-1m", _M, model=_LLAMA3, mesh="1,4,8,8"),
    step("7b-answers", _M, rows=1, mesh="1,1,4,8", topology="v4:2x4x4"),
)
"""Steps of no recipe, and one for its programs of answering: a row of a million tokens."""


def cases() -> list[Case]:
    """Returns all cases; of those that have the same programs, the first."""
    found = {case.key: case for case in reversed([*of_recipes(), *STEPS])}
    return list(found.values())[::-1]


def compiled(case: Case, program: Program) -> dict[str, Any]:
    """Compiles a program in this process, and returns its line."""
    from lwm.generate.abstract import generation_programs
    from lwm.plan.chips import read_slice
    from lwm.plan.compiled import Refused, compile_program
    from lwm.sharding import make_mesh
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


def estimate(case: Case, sizes: Sequence[int]) -> int:
    """Returns what `lwm plan` says without a compiler, in bytes of a chip."""
    dp, fsdp, tp, sp = sizes
    return memory_of(case.run, case.model, (dp, fsdp, tp, sp)).total


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Returns the table of results, in the order of the cases; GiB of a chip."""
    by_name = {case.name: case for case in cases()}
    found = {(line["case"], line["program"]): line for line in lines}
    rows = [
        "case", "program", "slice", "mesh", "rows × tokens", "type", "arguments", "temporaries",
        "peak", "estimate", "difference", "seconds",
    ]  # fmt: skip
    cells = [rows]
    for (name, program), line in sorted(
        found.items(), key=lambda each: [*by_name].index(each[0][0])
    ):
        case = by_name[name]
        data, compute = case.run.data, case.run.compute
        row = [
            name,
            program,
            case.topology,
            ",".join(map(str, line.get("mesh", [case.run.mesh]))),
            f"{data.rows:,} × {data.packing.length:,}",
            f"{compute.dtype}, {compute.remat}",
        ]
        if "refused" in line:
            cells.append([*row, line["refused"], *[""] * 4, f"{line.get('seconds', 0):.0f}"])
            continue
        expected, difference = "", ""
        if program == "update":
            bytes_ = estimate(case, line["mesh"])
            expected, difference = gib(bytes_), f"{bytes_ / line['peak'] - 1:+.0%}"
        sizes = [gib(line[each]) for each in ("arguments", "temporaries", "peak")]
        cells.append([*row, *sizes, expected, difference, f"{line['seconds']:.0f}"])
    return markdown_table(cells)


def gib(count: float) -> str:
    """Formats bytes as GiB."""
    return f"{count / _GIB:.2f}" if count >= _GIB / 10 else f"{count / _GIB:.4f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to compile."""

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
    if options.list:
        print(*(case.name for case in chosen), sep="\n")
        return
    for case in chosen if not options.table else ():
        for program in options.programs:
            if options.here:
                print(json.dumps(compiled(case, program)))
                continue
            there = {(line["case"], line["program"]) for line in read(options.out)}
            if options.again or (case.name, program) not in there:
                line = apart(case, program, options.minutes)
                shown = line.get("refused") or f"{gib(line['peak'])} GiB in {line['seconds']:.0f} s"
                print(f"{case.name}, {program}: {shown}", flush=True)
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    if options.here:
        return
    found = table(read(options.out))
    print(found)
    options.out.with_suffix(".md").write_text(found + "\n")
    if options.docs is not None:
        before, _, rest = options.docs.read_text().partition(BEGINS)
        _, _, after = rest.partition(ENDS)
        options.docs.write_text(f"{before}{BEGINS}\n\n{found}\n\n{ENDS}{after}")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
