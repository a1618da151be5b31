"""`lwm eval visual-needle`: pictures in long videos, to be named or to be generated."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from lwm.cli.common import (
    Flat,
    LoadOptions,
    Model,
    answering,
    open_model,
    record_command,
)
from lwm.errors import UserError
from lwm.eval.visual_needle.config import VisualNeedleConfig

if TYPE_CHECKING:
    from lwm.eval.subject import Subject
    from lwm.eval.visual_needle.report import VisualNeedleReport
    from lwm.generate.language_model import LanguageModel


def eval_visual_needle(
    model: Model,
    /,
    *,
    out: Path | None = None,
    rows: int = 4,
    needle: Flat[VisualNeedleConfig] = VisualNeedleConfig(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Hides pictures in videos of several lengths; asks what they show, or for the pictures.

    Args:
        model: A vision model: a name from `lwm models`, a folder, or a hub's org/name.
        out: Folder for results, report.json and heat maps, by default `visual-needle-ask` or
            `visual-needle-draw`; run again to continue, or with more frames, depths or rounds to
            add them.
        rows: Prompts that are answered together, as far as the memory has room for them.
        needle: The grid, the videos and the needles.
        load: How the model is loaded.
    """
    from lwm.eval.subject import Subject
    from lwm.eval.visual_needle.run import check

    if rows < 1:
        raise UserError(f"--rows {rows} must be at least 1")
    folder = out or Path(needle.folder)
    check(needle, folder)
    run_visual_needle(Subject.of_model(open_model(model, load), rows=rows), needle, folder)


def run_visual_needle(
    subject: "Subject | LanguageModel", config: VisualNeedleConfig, out: Path
) -> "VisualNeedleReport":
    """Evaluates a model with a progress bar; prints table and score.

    Raises:
        UserError: See `evaluate`.
        KeyboardInterrupt: Ctrl-C was pressed; the answers so far are kept.
    """
    from lwm.eval.visual_needle.run import REPORT, evaluate

    begun = time.monotonic()
    with answering() as progress:
        run = evaluate(subject, config, out, progress=progress)
    record_command(out / REPORT)
    print(run.report.table())
    work = run.work
    read = "" if work.tokens_read is None else f", {work.tokens_read:,} of them read"
    print(
        f"\n{run.report.statement()}\n{work.num_new:,} of {len(run.report.rows):,} questions asked "
        f"now: prompts of {work.prompt_tokens:,} tokens{read}, {time.monotonic() - begun:.1f} s"
    )
    return run.report
