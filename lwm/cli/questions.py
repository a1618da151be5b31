"""`lwm eval qa|adherence`: questions about images and videos, and prompts that ask for them."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lwm.cli.answerers import AnswerOptions, open_subject, require_answerer
from lwm.cli.common import (
    Flat,
    LoadOptions,
    Model,
    answering,
    open_model,
    record_command,
)
from lwm.errors import UserError
from lwm.eval.adherence.config import AdherenceConfig
from lwm.eval.qa.config import QAConfig

if TYPE_CHECKING:
    from lwm.eval.adherence.report import AdherenceReport
    from lwm.eval.qa.report import QAReport
    from lwm.eval.qa.rows import QuestionSet
    from lwm.eval.subject import Subject


def eval_qa(
    model: Model,
    files: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    *,
    out: Path = Path("qa"),
    qa: Flat[QAConfig] = QAConfig(),
    load: Flat[LoadOptions] = LoadOptions(),
    answers: Flat[AnswerOptions] = AnswerOptions(),
) -> None:
    """Asks questions of a local set about images or videos, and scores the answers by its rule.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
            With --endpoint the name that the server has for it.
        files: JSON lines or Parquet in the shape of VQAv2, GQA, POPE, MSVD-QA or MSRVTT-QA; or
            clips of the world, such as `world:heldout` or `world:train,count=100,frames=1`.
        out: Folder for results and report.json; run again to continue, or to ask more.
        qa: Rule of the set, its images and videos, and the form of the prompts.
        load: How the model is loaded.
        answers: Where the model is, and how it is asked.
    """
    from lwm.eval.qa.run import check, open_questions

    require_answerer(model, answers)
    questions = open_questions(files, qa)
    check(questions, qa, out)
    with open_subject(model, load, answers) as subject:
        run_qa(subject, questions, qa, out)


def run_qa(subject: "Subject", questions: "QuestionSet", config: QAConfig, out: Path) -> "QAReport":
    """Evaluates with a progress bar; prints the table.

    Raises:
        UserError: See `evaluate`.
        KeyboardInterrupt: Ctrl-C was pressed; the answers so far are kept.
    """
    from lwm.eval.qa.run import REPORT, evaluate

    begun = time.monotonic()
    with answering() as progress:
        run = evaluate(subject, questions, config, out, progress=progress)
    record_command(out / REPORT)
    print(run.report.table())
    print(
        f"\n{run.report.statement()}\n{run.work.num_new:,} of {len(run.report.rows):,} questions "
        f"asked now: prompts of {run.work.prompt_tokens:,} tokens, {time.monotonic() - begun:.1f} s"
    )
    return run.report


def eval_adherence(
    model: Model,
    /,
    *,
    out: Path = Path("adherence"),
    rows: int = 4,
    adherence: Flat[AdherenceConfig] = AdherenceConfig(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Asks for images and videos by captions of a small world; a program judges what they show.

    Args:
        model: A vision model: a name from `lwm models`, a folder, or a hub's org/name.
        out: Folder for results, report.json and sheet.png; run again to continue or to add.
        rows: Prompts that are answered together, as far as memory has room for them.
        adherence: What is asked for.
        load: How the model is loaded.
    """
    from lwm.eval.adherence.run import check
    from lwm.eval.subject import Subject

    if rows < 1:
        raise UserError(f"--rows {rows} must be at least 1")
    check(adherence, out)
    run_adherence(Subject.of_model(open_model(model, load), rows=rows), adherence, out)


def run_adherence(subject: "Subject", config: AdherenceConfig, out: Path) -> "AdherenceReport":
    """Evaluates with a progress bar; prints the tables.

    Raises:
        UserError: See `evaluate`.
        KeyboardInterrupt: Ctrl-C was pressed; the answers so far are kept.
    """
    from lwm.eval.adherence.run import REPORT, SHEET, evaluate

    begun = time.monotonic()
    with answering("drawing") as progress:
        run = evaluate(subject, config, out, progress=progress)
    record_command(out / REPORT)
    print(run.report.table())
    print(
        f"\n{run.work.num_new:,} of {len(run.report.rows):,} drawn now, "
        f"{time.monotonic() - begun:.1f} s\n{out / SHEET}"
    )
    return run.report
