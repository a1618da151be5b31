"""Parts that several commands share: load options, opening a model, bars, tables."""

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lwm.distributed import Processes, end_alone, join
from lwm.files import read_json, write_bytes
from lwm.model.config import NO_OVERRIDES, ModelOverrides
from lwm.text import printable, without_controls

if TYPE_CHECKING:
    from rich.console import Console

    from lwm.generate.language_model import LanguageModel
    from lwm.progress import Progress


def _named(name: str) -> Any:
    # As in `lwm train`; other options of a model have no prefix.
    return tyro.conf.arg(name=f"processes.{name}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Processes(Processes):
    coordinator: Annotated[str | None, _named("coordinator")] = None
    """Address of the first process, such as `10.0.0.1:1234`; `auto` takes all three from the
    cluster (SLURM, Kubernetes, Open MPI, a TPU pod)."""
    count: Annotated[int | None, _named("count")] = None
    """Number of processes; the same command is started once for each."""
    index: Annotated[int | None, _named("index")] = None
    """Number of this process, from 0."""
    timeout: Annotated[int, _named("timeout")] = 300
    """Seconds to wait until all have joined, and later for one that does not answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Devices, dtype and files of a model."""

    mesh: str = "1,1,1,1"
    """Devices: dp,fsdp,tp,sp such as 1,1,4,1 (one -1 is inferred), or tp=4."""
    dtype: Literal["float32", "bfloat16", "int8", "int4", "stored"] = "float32"
    """Type of weights and computation. Weights in int8, in int4 and as the files store them are
    computed in float32."""
    template: str | None = None
    """`lwm` or Jinja source in place of the model's own chat template."""
    vqgan: Path | None = None
    """The VQGAN, if it is not beside the model: a folder, or LWM's file."""
    lora: Path | None = None
    """Folder of a LoRA adapter of the model, as PEFT and `lwm train` save it."""
    pool_tokens: int | None = None
    """Tokens in the cache of each device, for all answers at once; else it grows with them."""
    cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None
    """Type of keys and values in the cache; else that of `dtype`, or bfloat16 for few bits."""
    processes: Annotated[_Processes, tyro.conf.arg(name="")] = _Processes()
    """Several processes that hold the mesh together; the first one serves, the others help."""
    # Without a name it has no group of its own in the help.
    given: Annotated[ModelOverrides, tyro.conf.arg(name="")] = NO_OVERRIDES
    """Values that the model's files lack."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `lwm.loading.load`."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names if name != "processes"}


STOPPING = "lwm: stopping; Ctrl-C again ends at once"

Model = Annotated[str, tyro.conf.Positional]
Flat = tyro.conf.OmitArgPrefixes


def open_model(name: str, options: LoadOptions) -> "LanguageModel":
    """Loads a model behind a progress bar; compiled programs are cached for the next run.

    Of several processes, only the first one returns: the others follow it, and end with it.
    """
    import jax

    from lwm.console import waiting
    from lwm.convert.open import find_files
    from lwm.folders import cache_folder
    from lwm.loading import load

    join(options.processes)
    try:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        find_files(name)  # a download has a bar of its own
        with waiting(f"loading {name}", "tensors") as progress:
            model = load(name, **options.arguments, progress=progress)
    except BaseException as error:
        end_alone(error)  # the others would wait for this process
        raise
    if jax.process_count() > 1:
        _share(model)
    return model


def _share(model: "LanguageModel") -> None:
    """Opens the engine of process 0; on others, follows it, and ends the program."""
    import jax

    if jax.process_index() == 0:
        _ = model.engine  # closed at the end, whatever happens, which ends the others
        return
    model.follow()
    sys.exit()


@contextlib.contextmanager
def stoppable(
    label: str, unit: str = "", *, console: "Console | None" = None
) -> "Iterator[Progress]":
    """Shows a bar; after Ctrl-C, the next report of progress raises KeyboardInterrupt."""
    from lwm.console import Interruptible, waiting

    with Interruptible() as user, waiting(label, unit, console=console) as bar:

        def progress(done: int, total: int) -> None:
            bar(done, total)
            user.check()

        yield progress


@contextlib.contextmanager
def answering(label: str = "asking") -> "Iterator[Progress]":
    """Shows a bar of tokens; after Ctrl-C, prints what is kept and raises KeyboardInterrupt."""
    try:
        with stoppable(label, "tokens") as progress:
            yield progress
    except KeyboardInterrupt as stopped:
        print_line(str(stopped) or "stopped before the first answer", error=True)
        raise


def command_line() -> str:
    """Returns the command that runs, as a shell takes it."""
    return shlex.join(["lwm", *sys.argv[1:]])


def record_command(report: Path) -> None:
    """Adds the command that runs to the report of an evaluation, for the model card.

    The address of a server stays out of reports, so the command that asks one does, too.

    Raises:
        UserError: The report cannot be read or written.
    """
    if any(argument.split("=")[0] == "--endpoint" for argument in sys.argv):
        return
    values = read_json(report) | {"command": command_line()}
    text = json.dumps(values, ensure_ascii=False, indent=2) + "\n"
    write_bytes(report, text.encode(errors="backslashreplace"))


def print_line(text: object, *, error: bool = False) -> None:
    """Prints one line on stdout or stderr; what names of files hide in it is shown as escapes."""
    print(printable(str(text)), file=sys.stderr if error else sys.stdout)


def print_text(text: str, *, end: str = "\n") -> None:
    """Prints a text of a model or a user: on a terminal without control characters."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    print(without_controls(text) if is_terminal else text, end=end, flush=True)


def print_table(rows: Iterable[tuple[str, ...]], *, first: int = 0, numbers: bool = False) -> None:
    """Prints rows in columns.

    Args:
        rows: Cells, as many in each row.
        first: The least width of the first column.
        numbers: Right-aligns the columns after the first.
    """
    columns = list(zip(*(map(printable, row) for row in rows), strict=True))
    aligned = []
    for number, column in enumerate(columns):
        width = max(map(len, column), default=0) if number else max(first, *map(len, column))
        aligned.append([c.rjust(width) if numbers and number else c.ljust(width) for c in column])
    for cells in zip(*aligned, strict=True):
        print("  ".join(cells).rstrip())
