"""`lwm eval ruler`: RULER's tasks, their table and the effective length."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from lwm.cli.answerers import AnswerOptions, open_subject, require_answerer
from lwm.cli.common import Flat, LoadOptions, Model, answering, record_command
from lwm.eval.ruler.config import RulerConfig

if TYPE_CHECKING:
    from lwm.eval.ruler.report import RulerReport
    from lwm.eval.subject import Subject


def eval_ruler(
    model: Model = "",
    /,
    *,
    out: Path = Path("ruler"),
    ruler: Flat[RulerConfig] = RulerConfig(),
    load: Flat[LoadOptions] = LoadOptions(),
    answers: Flat[AnswerOptions] = AnswerOptions(),
) -> None:
    """Asks RULER's thirteen tasks at several context lengths; prints scores and effective length.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
            With --endpoint the name that the server has for it, if it serves several.
        out: Folder for results, report.json and heatmap.png; run again to continue or to add.
        ruler: Tasks, lengths and samples.
        load: How the model is loaded.
        answers: Where the model is, and how it is asked.
    """
    from lwm.eval.ruler.run import check

    require_answerer(model, answers)
    check(ruler, out)
    with open_subject(model, load, answers) as subject:
        run_ruler(subject, ruler, out)


def run_ruler(subject: "Subject", config: RulerConfig, out: Path) -> "RulerReport":
    """Evaluates with a progress bar; prints table and effective length.

    Raises:
        UserError: See `evaluate`.
        KeyboardInterrupt: Ctrl-C was pressed; the answers so far are kept.
    """
    from lwm.eval.ruler.run import REPORT, evaluate

    begun = time.monotonic()
    with answering() as progress:
        run = evaluate(subject, config, out, progress=progress)
    record_command(out / REPORT)
    report, work = run.report, run.work
    print(report.table())
    read = "" if work.tokens_read is None else f", {work.tokens_read:,} of them read"
    print(
        f"\n{report.statement()}\n{work.num_new:,} of {len(report.rows):,} questions asked now: "
        f"prompts of {work.prompt_tokens:,} tokens{read}, {time.monotonic() - begun:.1f} s"
    )
    return report
