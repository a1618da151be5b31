"""Entry point of the command line; imports JAX only when a command runs, so help is fast."""

import difflib
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lwm.cli.chat import chat
from lwm.cli.common import STOPPING, Flat, LoadOptions, print_line, print_table
from lwm.cli.convert import convert
from lwm.cli.data import data_check, data_show, data_tokenize, tokenize
from lwm.cli.eval import eval_needle, eval_vision, eval_vqgan
from lwm.cli.evaluate import eval_all, eval_compare
from lwm.cli.generate import generate_image, generate_video
from lwm.cli.harness import eval_harness, run_harness
from lwm.cli.help import with_short_help
from lwm.cli.needles import data_needles
from lwm.cli.perplexity import eval_perplexity
from lwm.cli.plan import plan
from lwm.cli.qa import data_qa
from lwm.cli.questions import eval_adherence, eval_qa
from lwm.cli.ruler import eval_ruler
from lwm.cli.serve import serve
from lwm.cli.texts import generate_text
from lwm.cli.visual_needle import eval_visual_needle
from lwm.errors import UserError
from lwm.hub import catalog
from lwm.signals import Ended, answered, end_now, ending


def plot(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    *,
    out: Path | None = None,
    over: Literal["steps", "tokens"] = "steps",
    overwrite: bool = False,
) -> None:
    """Plots loss, held-out loss by position, learning rate and throughput of training runs.

    Args:
        runs: Folders of runs or curricula; several are compared in one figure.
        out: The figure: .png, .pdf or .svg; by default `plot.png` in the run's folder, which is
            replaced, or for several runs here.
        over: Plot over steps, or over the tokens trained on (frames of a VQGAN).
        overwrite: Replace another figure that exists.
    """
    from lwm.files import require_absent
    from lwm.train.monitor.plot import plot_runs

    if out is not None or len(runs) > 1:
        require_absent(out or Path("plot.png"), overwrite=overwrite)
    print_line(plot_runs(runs, out, over=over))


_DEMO = Path("demo")


def demo(
    *,
    out: Path = _DEMO,
    overwrite: bool = False,
    model: str = "smollm2-135m-instruct",
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Runs two small models on questions, a book chapter, images and a clip; writes a web page.

    Args:
        out: The folder for index.html.
        overwrite: Replace a page in another folder than `demo`.
        model: Another model to show.
        load: How the model is loaded.
    """
    from lwm.cli.demo import run

    print_line(run(out, model=model, load=load, overwrite=overwrite or out == _DEMO))


def models() -> None:
    """Lists the models known by name, and their folders on this machine."""
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
    print_table(rows)


Command = Callable[..., None]
COMMANDS: dict[str, Command | dict[str, Command]] = {
    "demo": demo,
    "chat": chat,
    "generate": {"text": generate_text, "image": generate_image, "video": generate_video},
    "eval": {
        "adherence": eval_adherence,
        "all": eval_all,
        "compare": eval_compare,
        "harness": eval_harness,
        "needle": eval_needle,
        "perplexity": eval_perplexity,
        "qa": eval_qa,
        "ruler": eval_ruler,
        "vision": eval_vision,
        "visual-needle": eval_visual_needle,
        "vqgan": eval_vqgan,
    },
    "serve": serve,
    "tokenize": tokenize,
    "data": {
        "check": data_check,
        "tokenize": data_tokenize,
        "show": data_show,
        "needles": data_needles,
        "qa": data_qa,
    },
    "plot": plot,
    "models": models,
    "plan": plan,
    "convert": convert,
}
GROUPS = {
    "generate": "Generates: `lwm generate text`, `lwm generate image`, `lwm generate video`.",
    "eval": "Evaluates: `lwm eval all`, `lwm eval compare`, and each test by itself.",
    "data": "Prepares training data: `lwm data check`, `lwm data tokenize`, `lwm data show`, "
    "`lwm data needles`.",
    "train": "Trains a model by a recipe: `lwm train debug`.",
}


def main() -> None:
    """Runs one command; a user's error is one line on stderr and exit code 2.

    A signal that ends it adds its number to 128: 130 is Ctrl-C, 143 SIGTERM, 129 SIGHUP.
    """
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            # Some terminals lack letters, and some input that is piped in is not text.
            stream.reconfigure(errors="replace")
    # The chat and the server answer Ctrl-C themselves.
    own = () if sys.argv[1:2] in (["chat"], ["serve"]) else (signal.SIGINT,)
    try:
        with ending(), answered(STOPPING, *own):
            _run(sys.argv[1:])
        if sys.stdout is not None:
            # Now, while a closed pipe can be distinguished from an error.
            sys.stdout.flush()
    except UserError as error:
        print_line(f"lwm: {error}", error=True)
        sys.exit(2)
    except (RuntimeError, AssertionError) as error:
        if (problem := _no_devices(error)) is None:
            raise
        print_line(f"lwm: {problem}", error=True)
        sys.exit(2)
    except KeyboardInterrupt:
        end_now(130)
    except Ended as ended:
        end_now(ended.status)
    except BrokenPipeError:
        # The reader closed the pipe; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _no_devices(error: Exception) -> str | None:
    """Returns the line for JAX's error about devices that are not there; None for other errors.

    Any command may be the first to use them, anywhere.
    """
    found = re.match(
        r"Unable to initialize backend '(.*?)': ([^\n]*?)(?: \(set JAX.*)?$",
        str(error),
        re.MULTILINE,
    )
    asked, reason = found.groups() if found else (os.environ.get("JAX_PLATFORMS"), "")
    # Without any NVIDIA GPU, JAX fails in an assertion.
    bare = traceback.extract_tb(error.__traceback__)[-1].filename.endswith("xla_bridge.py")
    if not found and not (asked and bare):
        return None
    named = "JAX_PLATFORMS" in os.environ
    remedy = "unset JAX_PLATFORMS" if named else "set JAX_PLATFORMS=cpu"
    return f"there is no device for {asked}{f' ({reason})' * bool(reason)}; {remedy}"


def _run(arguments: list[str]) -> None:
    if arguments[:1] == ["--version"]:
        import lwm

        print_line(f"lwm {lwm.__version__}")
        return
    _require_known(arguments, [*COMMANDS, "train"], "lwm")
    group = COMMANDS.get(arguments[0]) if arguments else None
    if arguments[:1] == ["train"]:
        from lwm.cli import train as cli_train

        if len(arguments) > 1 and arguments[1].endswith(".py"):
            cli_train.print_recipes(Path(arguments[1]))
            return
        recipes, arguments = cli_train.commands(arguments[1:])
        _require_known(arguments, recipes, "lwm train")
        _parse(recipes, arguments, prog="lwm train", about=cli_train.ABOUT, is_recipe=True)
        return
    if arguments[:1] == ["plan"] and _is_recipe(*arguments[1:2]):
        from lwm.cli import plan_recipe
        from lwm.cli.train import commands as by_recipe

        if (model := catalog.known(arguments[1])) is not None:
            print_line(f"lwm: this is the recipe; the model is {model.name}", error=True)
        given = plan_recipe.plan_recipe, plan_recipe.PlanOptions
        recipes, arguments = by_recipe(arguments[1:], *given)
        _parse(recipes, arguments, prog="lwm plan", about=plan_recipe.ABOUT, is_recipe=True)
        return
    if arguments[:2] == ["eval", "harness"]:
        run_harness(arguments[2:])
        return
    if isinstance(group, dict):
        _require_known(arguments[1:], group, f"lwm {arguments[0]}")
        _parse(group, arguments[1:], prog=f"lwm {arguments[0]}", about=GROUPS[arguments[0]])
        return
    commands = {
        name: _described(GROUPS[name]) if isinstance(command, dict) else command
        for name, command in COMMANDS.items()
    }
    # Its recipes are imported only for this command.
    commands["train"] = _described(GROUPS["train"])
    _parse(
        commands,
        arguments,
        prog="lwm",
        about="Large world models: chat, generate, evaluate, train.",
    )


def _require_known(arguments: list[str], names: Collection[str], before: str) -> None:
    """Refuses a misspelt command.

    Args:
        arguments: Those from the command on.
        names: The commands that there are.
        before: What stands before them.

    Raises:
        UserError: There is no such command; the nearest ones are suggested.
    """
    if not arguments or arguments[0].startswith("-") or arguments[0] in names:
        return
    near = difflib.get_close_matches(arguments[0], names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
    raise UserError(f"{before} has no {arguments[0]!r}; {hint}")


def _is_recipe(name: str = "") -> bool:
    from lwm.recipes import RECIPES

    return name in RECIPES or ".py:" in name


def _parse(
    commands: dict[str, Command],
    arguments: list[str],
    *,
    prog: str,
    about: str,
    is_recipe: bool = False,
) -> None:
    def parse(given: list[str]) -> None:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog=prog,
            description=about,
            args=given,
            config=(
                tyro.conf.PositionalMetavarFromFieldName,
                tyro.conf.DisallowNone,
                tyro.conf.AvoidSubcommands,
            ),
        )

    with_short_help(arguments, parse, command=prog, is_recipe=is_recipe)


def _described(about: str) -> Command:
    """Returns a stand-in for a group of commands in the list of all; it is never called."""

    def group() -> None: ...

    group.__doc__ = about
    return group
