"""`lwm eval all|compare`: every test in one report, and differences of models."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lwm.cli.answerers import AnswerOptions, open_subject, require_answerer
from lwm.cli.common import Flat, LoadOptions, Model, command_line, print_line, print_table
from lwm.eval.suite.config import SuiteConfig

if TYPE_CHECKING:
    from lwm.eval.subject import Subject

_OUT = Path("eval")


def eval_all(
    model: Model = "",
    /,
    *,
    out: Path | None = None,
    suite: Flat[SuiteConfig] = SuiteConfig(),
    load: Flat[LoadOptions] = LoadOptions(),
    answers: Flat[AnswerOptions] = AnswerOptions(),
) -> None:
    """Measures retrieval of needles in texts and videos, RULER, and more; writes one report.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
            With --endpoint the name that the server has for it, if it serves several.
        out: Folder for the results and report.html, by default eval/NAME; run again to continue.
        suite: The parts, and the questions of each.
        load: How the model is loaded.
        answers: Where the model is, and how it is asked.
    """
    from lwm.eval.suite.run import check

    require_answerer(model, answers)
    check(suite, out)
    with open_subject(model, load, answers) as subject:
        run_all(subject, suite, out or _OUT / _folder(subject.name))


def run_all(subject: "Subject", config: SuiteConfig, out: Path) -> dict[str, Any]:
    """Runs the suite with a progress bar, and prints scores and the path of the page.

    Raises:
        UserError: See `evaluate_all`.
        KeyboardInterrupt: Ctrl-C was pressed; the answers so far are kept.
    """
    from lwm.console import Interruptible, waiting
    from lwm.eval.suite.run import PAGE, evaluate_all

    begun, current = time.monotonic(), ""

    def begin(part: str) -> None:
        nonlocal current
        current = part

    try:
        with Interruptible() as user, waiting("asking", "tokens", note=lambda: current) as bar:

            def progress(done: int, total: int) -> None:
                bar(done, total)
                user.check()

            command = command_line()
            report = evaluate_all(
                subject, config, out, command=command, progress=progress, begin=begin
            )
    except KeyboardInterrupt as stopped:
        print_line(stopped, error=True)
        raise
    _print_scores(report)
    print_line(f"{out / PAGE} ({time.monotonic() - begun:.0f} s)")
    return report


def _print_scores(report: dict[str, Any]) -> None:
    from lwm.eval.report.page import headlines_of

    tables, statements = headlines_of(report)
    for table in tables:
        print_line(table.caption)
        print_table([tuple(table.head), *map(tuple, table.rows)], numbers=True)
    for line in [*statements, *(f"left out: {line}" for line in report["left_out"])]:
        print_line(line)


def _folder(name: str) -> str:
    """Returns a folder's name for a model's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "model"


def eval_compare(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    *,
    out: Path = Path("comparison"),
    overwrite: bool = False,
) -> None:
    """Compares models by their answers to the same questions: differences, intervals, p-values.

    Args:
        folders: Folders of `lwm eval all` or of single evaluations; the first is compared with
            each of the others.
        out: Folder for comparison.json and comparison.html.
        overwrite: Replace a comparison that exists.
    """
    from lwm.eval.compare import compare
    from lwm.eval.report.comparison import PAGE, REPORT, table, write_comparison
    from lwm.files import require_absent

    for name in (REPORT, PAGE):
        require_absent(out / name, overwrite=overwrite)
    report = compare(folders)
    for comparison in report["comparisons"]:
        shown = table(report["first"], comparison)
        print_line(shown.caption)
        print_table([tuple(shown.head), *map(tuple, shown.rows)], numbers=True)
        print_line("")
    for note in report["notes"]:
        print_line(note)
    print_line(write_comparison(report, out))
