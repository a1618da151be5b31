"""The command line. It imports JAX only when a command needs it, so that help comes at once."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from lwm.cli.common import Flat, LoadOptions, Model
from lwm.cli.convert import convert
from lwm.cli.generate import generate_image, generate_text, generate_video
from lwm.cli.media import data_show, eval_vision, eval_vqgan, tokenize
from lwm.cli.plan import plan
from lwm.data.format import ExampleFormat
from lwm.errors import UserError
from lwm.eval.needle.config import NeedleConfig
from lwm.sampling_params import SamplingParams, VisionSampling

Question = Annotated[str | None, tyro.conf.Positional]
Files = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]


def chat(
    model: Model,
    question: Question = None,
    /,
    *,
    document: Path | None = None,
    image: Files = (),
    video: Files = (),
    max_frames: int = 8,
    fps: float | None = None,
    out: Path | None = None,
    drawings: Annotated[VisionSampling, tyro.conf.arg(name="")] = VisionSampling(),
    writing: Flat[SamplingParams] = SamplingParams(),
    placing: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Asks a model; without a question, talks with it turn by turn.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
        question: What to ask.
        document: A text file to ask about.
        image: An image to ask about; give it again for more.
        video: A video to ask about; give it again for more.
        max_frames: Take at most so many frames of a video, evenly spaced; 0 is all.
        fps: Take the frames shown at each 1/fps seconds.
        out: Let the answer hold images and videos too, and save them in this folder.
        drawings: How images and videos are drawn.
        writing: How the answer is written.
        placing: Where the model is loaded.
    """
    from lwm.cli.chat import TerminalChat, open_model, read_document

    text = None if document is None else read_document(document)
    if max_frames < 0:
        raise UserError(f"--max-frames {max_frames} must be 0 (all) or above")
    talk = TerminalChat(
        open_model(model, placing),
        document=text,
        writing=writing,
        out=out,
        drawings=drawings,
        max_frames=max_frames or None,
        fps=fps,
    )
    for file in (*image, *video):
        talk.see(file)
    if question is None:
        talk.run()
    else:
        talk.answer(question)


def eval_needle(
    model: Model,
    /,
    *,
    out: Path = Path("needle"),
    needle: Flat[NeedleConfig] = NeedleConfig(),
    placing: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Hides a number in texts of many lengths, at many depths, and asks the model for it.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
        out: The folder for results, report.json and heatmap.png; run again, it goes on from there.
        needle: The grid and the questions.
        placing: Where the model is loaded.
    """
    from lwm.cli.chat import open_model
    from lwm.eval.needle.run import check, run

    check(needle, out)
    run(open_model(model, placing), needle, out)


def data_check(
    files: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    *,
    model: str | None = None,
    tokenizer: Path | None = None,
    codes: int = 8192,
    max_bad_share: float = 0.01,
    format: Flat[ExampleFormat] = ExampleFormat(),
) -> None:
    """Reads every record of training data, and says which are bad and what the rest are.

    Args:
        files: JSON lines, Parquet, ArrayRecord or .txt files, folders of them, or patterns.
        model: The model to be trained: a name from `lwm models`, a folder, or a GGUF file.
        tokenizer: In place of a model, a tokenizer's folder or file.
        codes: With a tokenizer alone, the entries of the vision codebook; 0 is no vision.
        max_bad_share: Fail when more than this share of the lines is bad.
        format: How records become examples.
    """
    from lwm.data.check import run

    run(
        files,
        model=model,
        tokenizer=tokenizer,
        codes=codes,
        max_bad_share=max_bad_share,
        format=format,
    )


def data_tokenize(
    files: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    *,
    out: Path,
    model: str | None = None,
    tokenizer: Path | None = None,
    codes: int = 8192,
    shards: int = 1,
    workers: int = 0,
    max_bad_share: float = 0.01,
    format: Flat[ExampleFormat] = ExampleFormat(),
) -> None:
    """Encodes training data once, into shards that are read many times as fast.

    Args:
        files: JSON lines, Parquet, ArrayRecord or .txt files, folders of them, or patterns.
        out: The folder for the shards; run again, it goes on where it stopped.
        model: The model to be trained: a name from `lwm models`, a folder, or a GGUF file.
        tokenizer: In place of a model, a tokenizer's folder or file.
        codes: With a tokenizer alone, the entries of the vision codebook; 0 is no vision.
        shards: How many files.
        workers: How many processes write them; 0 is this one.
        max_bad_share: Fail when more than this share of the lines is bad.
        format: How records become examples.
    """
    from lwm.data.tokenize import run

    run(
        files,
        out=out,
        model=model,
        tokenizer=tokenizer,
        codes=codes,
        shards=shards,
        workers=workers,
        max_bad_share=max_bad_share,
        format=format,
    )


def plot(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional], /, *, out: Path | None = None
) -> None:
    """Draws loss, held-out loss by position, learning rate and throughput of training runs.

    Args:
        runs: Folders of runs; several are drawn over each other.
        out: The picture: .png, .pdf or .svg; by default `plot.png` in the run's folder.
    """
    from lwm.train.monitor.plot import run

    print(run(runs, out))


def demo(
    *,
    out: Path = Path("demo"),
    model: str = "smollm2-135m-instruct",
    placing: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Lets a small real model answer, also about a chapter of a book, and writes a web page.

    Args:
        out: The folder for index.html.
        model: Another model to show.
        placing: Where the model is loaded.
    """
    from lwm.cli.demo import run

    print(run(out, model=model, placing=placing))


def models() -> None:
    """Lists the models known by name, and where each is on this machine."""
    from lwm.hub.catalog import MODELS, locate

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


Command = Callable[..., None]
COMMANDS: dict[str, Command | dict[str, Command]] = {
    "demo": demo,
    "chat": chat,
    "generate": {"text": generate_text, "image": generate_image, "video": generate_video},
    "eval": {"needle": eval_needle, "vision": eval_vision, "vqgan": eval_vqgan},
    "tokenize": tokenize,
    "data": {"check": data_check, "tokenize": data_tokenize, "show": data_show},
    "plot": plot,
    "models": models,
    "plan": plan,
    "convert": convert,
}
GROUPS = {
    "generate": "Writes and draws: `lwm generate text`, `lwm generate image`, `… video`.",
    "eval": "Measures: `lwm eval needle`, `lwm eval vision`, `lwm eval vqgan`.",
    "data": "Prepares training data: `lwm data check`, `lwm data tokenize`, `lwm data show`.",
    "train": "Trains a model by a recipe: `lwm train debug`.",
}


def main() -> None:
    """Runs one command; a fault of the input is one line on stderr and exit code 2."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            # Not every terminal has all letters, and not every file that is piped in is text.
            stream.reconfigure(errors="replace")
    try:
        _run(sys.argv[1:])
        if sys.stdout is not None:
            # Now, while a reader that has gone can still be told from a fault.
            sys.stdout.flush()
    except UserError as error:
        print(f"lwm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _run(arguments: list[str]) -> None:
    group = COMMANDS.get(arguments[0]) if arguments else None
    if arguments[:1] == ["train"]:
        from lwm.cli import train as cli_train

        recipes, arguments = cli_train.commands(arguments[1:])
        _parse(recipes, arguments, prog="lwm train", about=cli_train.ABOUT)
        return
    if isinstance(group, dict):
        _parse(group, arguments[1:], prog=f"lwm {arguments[0]}", about=GROUPS[arguments[0]])
        return
    commands = {
        name: _described(GROUPS[name]) if isinstance(command, dict) else command
        for name, command in COMMANDS.items()
    }
    # Its recipes are looked up only when it is asked for.
    commands["train"] = _described(GROUPS["train"])
    _parse(commands, arguments, prog="lwm", about="Large world models: ask, measure, train them.")


def _parse(commands: dict[str, Command], arguments: list[str], *, prog: str, about: str) -> None:
    tyro.extras.subcommand_cli_from_dict(
        commands,
        prog=prog,
        description=about,
        args=arguments,
        config=(
            tyro.conf.PositionalMetavarFromFieldName,
            tyro.conf.DisallowNone,
            tyro.conf.AvoidSubcommands,
        ),
    )


def _described(about: str) -> Command:
    """Stands for a group of commands in the list of all; it is never called."""

    def group() -> None: ...

    group.__doc__ = about
    return group
