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

from lwm.files import read_json, write_bytes
from lwm.model.config import NO_OVERRIDES, ModelOverrides
from lwm.text import printable, without_controls

if TYPE_CHECKING:
    from rich.console import Console

    from lwm.generate.language_model import LanguageModel
    from lwm.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Devices, dtype and files of a model."""

    mesh: str = "1,1,1,1"
    """Devices: dp,fsdp,tp,sp such as 1,1,4,1 (one -1 is inferred), or tp=4."""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """Type of weights and computation; int8 weights are stored so and computed in float32."""
    template: str | None = None
    """`lwm` or Jinja source in place of the model's own chat template."""
    vqgan: Path | None = None
    """The VQGAN, if it is not beside the model: a folder, or LWM's file."""
    pool_tokens: int | None = None
    """Tokens in the cache of each device, for all answers at once; else it grows with them."""
    # Without a name it has no group of its own in the help.
    given: Annotated[ModelOverrides, tyro.conf.arg(name="")] = NO_OVERRIDES
    """Values that the model's files lack."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `lwm.loading.load`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


STOPPING = "lwm: stopping; Ctrl-C again ends at once"

Model = Annotated[str, tyro.conf.Positional]
Flat = tyro.conf.OmitArgPrefixes


def open_model(name: str, options: LoadOptions) -> "LanguageModel":
    """Loads a model behind a progress bar; compiled programs are cached for the next run."""
    import jax

    from lwm.console import waiting
    from lwm.convert.open import find_files
    from lwm.hub import catalog
    from lwm.loading import load

    jax.config.update("jax_compilation_cache_dir", str(catalog.cache_folder() / "compiled"))
    find_files(name)  # a download has a bar of its own
    with waiting(f"loading {name}", "tensors") as progress:
        return load(name, **options.arguments, progress=progress)


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


def command_line() -> str:
    """Returns the command that runs, as a shell takes it."""
    return shlex.join(["lwm", *sys.argv[1:]])


def record_command(report: Path) -> None:
    """Adds the command that runs to the report of an evaluation, for the model card.

    Raises:
        UserError: The report cannot be read or written.
    """
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
