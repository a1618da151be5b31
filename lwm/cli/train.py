"""`lwm train`: a command for each recipe, an option for each of its values."""

import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from lwm.cli.common import print_line, print_table
from lwm.distributed import Processes
from lwm.errors import UserError
from lwm.model.config import ModelOverrides
from lwm.recipes import RECIPES, Recipe, find_recipe
from lwm.recipes.find import recipes_in
from lwm.renamed import new_options
from lwm.train.config import Curriculum, Run, named_after
from lwm.train.run_json import settings
from lwm.train.vqgan.config import VQGANRun

if TYPE_CHECKING:
    from lwm.cli.samples import Samples

ABOUT = "Trains a model by a recipe; run again, it goes on where it stopped."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options beside the settings of a recipe; all but `add` leave the numbers as they are."""

    out: Path | None = None
    """Folder for checkpoints, log and model; by default `runs` and the recipe's name."""
    add: Annotated[
        tuple[tuple[str, ...], ...],
        tyro.conf.arg(name="data.add", metavar="FILES [weight=W] [name=N]"),
        tyro.conf.UseAppendAction,
    ] = ()
    """Adds a data set of these files, in the format of the first set of the recipe."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Experiment trackers that also log the numbers."""
    sample: tuple[str, ...] = ()
    """Texts that the model continues at each validation, or draws if it has a VQGAN, into the
    folder `samples` of the run."""
    profile: int = 0
    """Number of steps to trace."""
    plan: bool = False
    """Print stages, tokens, operations and hours of chips, and train nothing."""
    processes: Processes = Processes()
    """For a run of several processes: start the same command in each, with its own index."""


Act = Callable[[str, Any, Any], None]
"""Takes the name of a recipe, what the options make of it, and the options beside its own."""


def commands(
    arguments: list[str], act: Act | None = None, options: type = Options
) -> tuple[dict[str, Callable[..., None]], list[str]]:
    """Returns a command for each recipe, the user's own included, and the arguments to parse.

    Options of the last release are replaced in these, with a hint on stderr.

    Args:
        arguments: Those of the command line, from the recipe's name.
        act: What the command does; by default it trains.
        options: Class of the options beside those of the recipe.
    """
    named = dict(RECIPES)
    if arguments and ":" in arguments[0]:
        named[arguments[0]] = find_recipe(arguments[0])
    if arguments and (recipe := named.get(arguments[0])):
        arguments = new_options(arguments, settings(_made(arguments[0], recipe)), _hint)
    found = {name: _command(name, recipe, act or train, options) for name, recipe in named.items()}
    return found, arguments


def _made(name: str, recipe: Recipe) -> Run | Curriculum | VQGANRun:
    """Returns the settings that a recipe makes.

    Raises:
        UserError: It needs arguments, or makes something else.
    """
    needed = [
        each.name
        for each in inspect.signature(recipe).parameters.values()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if needed:
        raise UserError(
            f"{name} needs {', '.join(needed)}, and a recipe is called without arguments"
        )
    made = recipe()
    if not isinstance(made, Run | Curriculum | VQGANRun):
        raise UserError(
            f"{name} returns {type(made).__name__}, but must return a Run, Curriculum or VQGANRun"
        )
    return made


def print_recipes(path: Path) -> None:
    """Lists the recipes in a file of the user.

    Raises:
        UserError: There is none, or the file cannot be run.
    """
    rows = [("RECIPE", "DESCRIPTION")]
    for name, recipe in recipes_in(path).items():
        rows.append((name, (recipe.__doc__ or "").strip().partition("\n")[0]))
    print_table(rows)


def _hint(text: str) -> None:
    print_line(f"lwm: {text}", error=True)


def _command(name: str, recipe: Recipe, act: Act, beside: type) -> Callable[..., None]:
    own = _made(name, recipe)
    kind: Any = type(own)

    def command(*, run: Any = own, options: Any = beside()) -> None:  # noqa: B008
        run = _replaced(run, own, trains=not getattr(options, "plan", True))
        for words in getattr(options, "add", ()):
            run = _with_set(run, words)
        act(name, run, options)

    # What a recipe makes decides the options; neither it nor the others have a name before theirs.
    plain = tyro.conf.arg(name="")
    command.__annotations__ |= {
        "run": Annotated[kind, plain],
        "options": Annotated[beside, plain],
    }
    command.__doc__ = recipe.__doc__
    return command


def _replaced(run: Any, recipe: Any, *, trains: bool) -> Any:
    """Names sets after the files that replace theirs, and drops the model where options replace
    it; in a curriculum, that of the first stage."""
    if isinstance(recipe, Run):
        return without_model(_with_names(run, recipe), recipe, trains=trains)
    if not isinstance(recipe, Curriculum):
        return _with_names(run, recipe)
    stages = [
        dataclasses.replace(stage, run=_with_names(stage.run, own.run))
        for stage, own in zip(run.stages, recipe.stages, strict=True)
    ]
    stages[0] = dataclasses.replace(
        stages[0], run=without_model(stages[0].run, recipe.stages[0].run, trains=trains)
    )
    return dataclasses.replace(run, stages=tuple(stages))


def _with_names(run: Any, recipe: Any) -> Any:
    """Names the sets of a run whose files are not the recipe's after their own, in the logs."""
    sets = {
        field: tuple(
            dataclasses.replace(one, name=named_after(one.files))
            if one.files != own.files and one.name == own.name
            else one
            for one, own in zip(getattr(run.data, field), getattr(recipe.data, field), strict=True)
        )
        for field in ("sets", "held_out")
    }
    names = [one.name for one in sets["held_out"]]
    if len(set(names)) < len(names):  # the same files in two formats
        del sets["held_out"]
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **sets))


def _with_set(run: Any, words: Sequence[str]) -> Any:
    """Adds a set to train on.

    Args:
        run: The run.
        words: Its files, and `weight=W` or `name=N` for other values than 1 and that of the files.

    Raises:
        UserError: There is no file, or the weight is no number.
    """
    if isinstance(run, Curriculum):
        raise UserError("--data.add is for a run of one stage; write a recipe for this one")
    given = dict(word.split("=", 1) for word in words if word.startswith(("weight=", "name=")))
    files = tuple(word for word in words if not word.startswith(("weight=", "name=")))
    if not files:
        raise UserError("--data.add has no files; give some, then weight=W and name=N if wanted")
    try:
        weight = float(given.get("weight", 1.0))
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"--data.add: weight={given['weight']} must be a number above 0")
    first = run.data.sets[0]
    changes: dict[str, Any] = {"least_tokens": None, "most_tokens": None, "group": None}
    changes = {name: value for name, value in changes.items() if hasattr(first, name)}
    name = given.get("name", named_after(files))
    added = dataclasses.replace(first, files=files, name=name, weight=weight, **changes)
    return dataclasses.replace(
        run, data=dataclasses.replace(run.data, sets=(*run.data.sets, added))
    )


_OVERRIDES = [field.name for field in dataclasses.fields(ModelOverrides)]
_INSTEAD = {
    "--model.max-context": "--context",
    "--model.rope.theta": "--theta",
    "--model.rope.scaling": "--rope-scaling",
}
"""Options for a model to start from, in place of those for a new model."""


def without_model(run: Run, recipe: Run, *, trains: bool) -> Run:
    """Drops the recipe's model where `--init` replaces it, or options change its context or RoPE.

    A plan keeps the model in the second case, since the one to start from need not be there.

    Raises:
        UserError: An option changes the model that is dropped; it is named.
    """
    if run.init is None or run.model is None or recipe.model is None:
        return run
    changed = any(getattr(run, name) != getattr(recipe, name) for name in _OVERRIDES)
    if run.init == recipe.init and not (trains and changed):
        return run
    before, now = settings(recipe.model), settings(run.model)
    for name in sorted(before | now):
        if before.get(name) != now.get(name):
            option = f"--model.{name.replace('_', '-')}"
            instead = next((new for old, new in _INSTEAD.items() if option.startswith(old)), None)
            hint = f"use {instead}" if instead else "leave it out"
            raise UserError(f"{option} is for a new model, and init brings its own; {hint}")
    return dataclasses.replace(run, model=None)


def train(name: str, run: Run | Curriculum | VQGANRun, options: Options) -> None:
    """Runs, and says where the model is; a run that is asked to stop says how to go on."""
    if options.plan:
        from lwm.cli.train_plan import print_plan

        print_plan(name, run)
        return
    from lwm.distributed import end_alone, join
    from lwm.train.loop import Stopped

    join(options.processes)
    folder = options.out or Path("runs") / name.rpartition(":")[2]
    try:
        model = _run(run, folder, options)
    except Stopped as stopped:
        print_line(f"lwm: {stopped}", error=True)
        # Not 0: what is to follow a complete run, as `&&` says, has no model yet.
        sys.exit(128 + stopped.by)
    except BaseException as error:
        end_alone(error)
        raise
    use = f"Talk to it: lwm chat {model}"
    if isinstance(run, VQGANRun):
        use = f"Use it: lwm tokenize FILES --vqgan {model} --out SHARDS"
    for line in (model, use, f"See the run: lwm plot {folder}"):
        print_line(line)


def _run(run: Run | Curriculum | VQGANRun, folder: Path, options: Options) -> Path:
    console = Console(stderr=True)
    if isinstance(run, Curriculum):
        from lwm.cli.evaluations import EVALUATIONS
        from lwm.train.curriculum import run_curriculum

        return run_curriculum(
            run,
            folder,
            console=console,
            track=options.track,
            profile=options.profile,
            evaluations=EVALUATIONS,
            sample=_sampler(options),
        )
    from lwm.train.run import run as run_training

    return run_training(
        run,
        folder,
        console=console,
        track=options.track,
        profile=options.profile,
        sample=_sampler(options),
    )


def _sampler(options: Options) -> "Samples | None":
    from lwm.cli.samples import Samples

    return Samples(options.sample) if options.sample else None
