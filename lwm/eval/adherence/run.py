"""Prompt adherence of a model: asks for images and videos, judges them, and writes the report."""

import dataclasses
from pathlib import Path

from lwm.eval.adherence.config import AdherenceConfig
from lwm.eval.adherence.evaluation import AdherenceEvaluation, identity, row_key
from lwm.eval.adherence.report import AdherenceReport
from lwm.eval.results import Results, require_same
from lwm.eval.subject import Subject, Work, ask_subject
from lwm.files import exclusive, make_folder, write_bytes
from lwm.generate.loaded import LoadedModel
from lwm.media.write import write_image
from lwm.progress import Progress

RESULTS, REPORT, SHEET = "results.jsonl", "report.json", "sheet.png"


def check(config: AdherenceConfig, out: Path) -> None:
    """Refuses early, before the model is loaded, an evaluation that would fail later.

    Args:
        config: What is asked for.
        out: The folder for the results; created if missing.

    Raises:
        UserError: There is no such world, or the folder cannot be written or holds another
            evaluation.
    """
    for group in config.groups:
        config.world(*group)
    make_folder(out)
    require_same(out / RESULTS, {"evaluation": "adherence", "config": identity(config)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdherenceRun:
    """Report of an evaluation, and the work that this call did for it."""

    report: AdherenceReport
    work: Work


def evaluate(
    subject: Subject | LoadedModel,
    config: AdherenceConfig,
    out: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> AdherenceRun:
    """Asks for every image and video that is not there yet, then writes report and sheet.

    Each result is appended to `results.jsonl` at once, with its codes; the same call continues a
    stopped one, and one with more splits, frames or samples asks what is new. The report covers
    all results.

    Args:
        subject: What is evaluated; see `Subject` for other things than a loaded model.
        config: What is asked for.
        out: The folder for the results.
        progress: Called with tokens done and their total, between blocks of a prompt; may raise.

    Raises:
        UserError: See `check`; or the model generates no images, they do not fit into its context,
            or another process writes to the folder.
        KeyboardInterrupt: `progress` raised it; the message names the answers kept so far.
    """
    if isinstance(subject, LoadedModel):
        subject = Subject.of_model(subject)
    check(config, out)
    with exclusive(out):
        evaluation = AdherenceEvaluation(config, subject)
        results = Results(out / RESULTS, evaluation.header())
        work = ask_subject(evaluation, subject, results, progress=progress)
        return AdherenceRun(report=write(evaluation, results, out), work=work)


def write(evaluation: AdherenceEvaluation, results: Results, out: Path) -> AdherenceReport:
    """Writes `report.json` and `sheet.png`, and returns the report."""
    rows = sorted(results.rows, key=row_key)
    report = AdherenceReport(header=results.header, rows=rows)
    write_bytes(out / REPORT, report.to_json().encode(errors="backslashreplace"))
    write_image(out / SHEET, evaluation.sheet(rows))
    return report
