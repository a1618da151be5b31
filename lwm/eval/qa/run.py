"""Question answering by a model: asks what has no answer yet, and writes the report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lwm.data.media.world import is_world
from lwm.errors import UserError
from lwm.eval.qa.config import QAConfig
from lwm.eval.qa.evaluation import QAEvaluation, chosen, identity
from lwm.eval.qa.report import QAReport
from lwm.eval.qa.rows import FileQuestions, QuestionSet
from lwm.eval.qa.world import WorldQuestions
from lwm.eval.results import Results, require_same
from lwm.eval.subject import Subject, Work, ask_subject
from lwm.files import exclusive, make_folder, write_bytes
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress

RESULTS, REPORT = "results.jsonl", "report.json"


def open_questions(files: Sequence[str], config: QAConfig) -> QuestionSet:
    """Opens files of questions, or sets of the world by name.

    Raises:
        UserError: A file cannot be read, or has no questions.
    """
    worlds = [name for name in files if is_world(name)]
    if worlds:
        if len(worlds) < len(files) or config.rule not in (None, "world"):
            raise UserError(f"{worlds[0]} has a rule of its own; ask other sets by themselves")
        return WorldQuestions.parse(worlds)
    return FileQuestions(files, config)


def check(questions: QuestionSet, config: QAConfig, out: Path) -> None:
    """Refuses early, before the model is loaded, an evaluation that would fail later.

    Args:
        questions: See `open_questions`.
        config: How they are asked and scored.
        out: The folder for the results; created if missing.

    Raises:
        UserError: Rows are bad, or the folder cannot be written or holds another evaluation.
    """
    bad, numbers = list[str](), chosen(len(questions), config.count)
    for number in numbers:
        try:
            questions.row(number)
        except UserError as error:
            bad.append(str(error))
    if bad:
        more = f"; {len(bad):,} of {len(numbers):,} rows are bad" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{more}; repair or remove what cannot be asked")
    make_folder(out)
    asked = {"config": identity(questions, config), "questions": questions.identity()}
    require_same(out / RESULTS, {"evaluation": "qa"} | asked)


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
        UserError: See `check`; or the model reads no images, a question cannot be asked, or another
            process writes to the folder.
        KeyboardInterrupt: `progress` raised it; the message names the answers kept so far.
    """
    if isinstance(subject, LoadedModel):
        subject = Subject.of_model(subject)
    check(questions, config, out)
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
