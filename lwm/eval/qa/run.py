"""Question answering by a model: asks what has no answer yet, and writes the report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lwm.data.media.world import is_world
from lwm.errors import UserError
from lwm.eval.qa.config import QAConfig
from lwm.eval.qa.evaluation import QAEvaluation
from lwm.eval.qa.report import QAReport
from lwm.eval.qa.rows import FileQuestions, QuestionSet
from lwm.eval.qa.world import WorldQuestions
from lwm.eval.results import Results
from lwm.eval.subject import Subject, Work, ask_subject
from lwm.files import exclusive, make_folder, write_bytes
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress

RESULTS, REPORT = "results.jsonl", "report.json"


def open_questions(files: Sequence[str], config: QAConfig) -> QuestionSet:
    """Opens files of questions, or sets of the world by name, and reads the first question.

    Raises:
        UserError: A file cannot be read, or its first question cannot be asked.
    """
    worlds = [name for name in files if is_world(name)]
    if worlds:
        if len(worlds) < len(files) or config.rule not in (None, "world"):
            raise UserError(f"{worlds[0]} has a rule of its own; ask other sets by themselves")
        return WorldQuestions.parse(worlds)
    questions = FileQuestions(files, config)
    questions.row(0)
    return questions


@dataclasses.dataclass(frozen=True, kw_only=True)
class QARun:
    """Report of an evaluation, and the work that this call did for it."""

    report: QAReport
    work: Work


def evaluate(
    subject: Subject | LoadedModel,
    questions: QuestionSet,
    config: QAConfig,
    out: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> QARun:
    """Asks every question that has no answer yet, then writes the report.

    Each answer is appended to `results.jsonl` at once; the same call continues a stopped one, and
    one with a larger count asks what is new. The report covers all results.

    Args:
        subject: What is evaluated; see `Subject` for other things than a loaded model.
        questions: See `open_questions`.
        config: How they are asked and scored.
        out: The folder for the results.
        progress: Called with tokens done and their total, between blocks of a prompt; may raise.

    Raises:
        UserError: A question cannot be asked, the folder holds another evaluation, or another
            process writes to it.
        KeyboardInterrupt: `progress` raised it; the message names the answers kept so far.
    """
    if isinstance(subject, LoadedModel):
        subject = Subject.of_model(subject)
    make_folder(out)
    with exclusive(out):
        evaluation = QAEvaluation(questions, config, subject)
        results = Results(out / RESULTS, evaluation.header())
        work = ask_subject(evaluation, subject, results, progress=progress)
        return QARun(report=write(results, out), work=work)


def write(results: Results, out: Path) -> QAReport:
    """Writes `report.json`, and returns the report."""
    rows = sorted(results.rows, key=lambda row: row["sample"])
    report = QAReport(header=results.header, rows=rows)
    write_bytes(out / REPORT, report.to_json().encode(errors="backslashreplace"))
    return report
