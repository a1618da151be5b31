"""The command line. It imports JAX only when a command needs it, so that help comes at once."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lwm.errors import UserError
from lwm.generate.writing import Writing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placing:
    """Where and how a model is loaded."""

    mesh: str = "1,1,1,1"
    """Devices: dp,fsdp,tp,sp such as 1,1,4,1 (one -1 is inferred), or tp=4."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What weights are stored and computed in."""
    template: str | None = None
    """`lwm` or Jinja source in place of the model's own chat template."""


Question = Annotated[str | None, tyro.conf.Positional]
Model = Annotated[str, tyro.conf.Positional]
Flat = tyro.conf.OmitArgPrefixes


def chat(
    model: Model,
    question: Question = None,
    /,
    *,
    document: Path | None = None,
    writing: Flat[Writing] = Writing(),  # noqa: B008  (frozen)
    placing: Flat[Placing] = Placing(),
) -> None:
    """Asks a model; without a question, talks with it turn by turn.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
        question: What to ask.
        document: A text file to ask about.
        writing: How the answer is written.
        placing: Where the model is loaded.
    """
    from lwm.talk import answer, open_model, read_document, talk

    text = None if document is None else read_document(document)
    opened = open_model(model, placing)
    if question is None:
        talk(opened, document=text, writing=writing)
    else:
        answer(opened, question, document=text, writing=writing)


def demo(
    *,
    out: Path = Path("demo"),
    model: str = "smollm2-135m-instruct",
    placing: Flat[Placing] = Placing(),
) -> None:
    """Lets a small real model answer, also about a chapter of a book, and writes a web page.

    Args:
        out: The folder for index.html.
        model: Another model to show.
        placing: Where the model is loaded.
    """
    from lwm.demo import run

    print(run(out, model=model, placing=placing))


def models() -> None:
    """Lists the models known by name, and where each is on this machine."""
    from lwm.catalog import MODELS, locate

    rows = [("NAME", "READS", "CONTEXT", "THETA", "LICENCE", "ON DISK")]
    for entry in MODELS:
        path = locate(entry)
        rows.append(
            (
                entry.name,
                entry.modality,
                f"{entry.context // 1024}K" if entry.context < 2**20 else "1M",
                f"{entry.theta:.1e}".replace("+0", ""),
                entry.licence,
                str(path) if path else "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for *cells, last in rows:
        print(*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last)


COMMANDS: dict[str, Callable[..., Any]] = {"demo": demo, "chat": chat, "models": models}


def main() -> None:
    """Runs one command; a fault of the input is one line on stderr and exit code 2."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="lwm",
            description="Large world models: ask, measure and train them.",
            config=(tyro.conf.PositionalMetavarFromFieldName, tyro.conf.DisallowNone),
        )
    except UserError as error:
        print(f"lwm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
