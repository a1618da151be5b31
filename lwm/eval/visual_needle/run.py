"""Visual needles of a model: asks for pictures in long videos, and writes report and heat map.

Results, report and heat map go to one folder; an answered question is not asked again.
"""

import dataclasses
from pathlib import Path

from lwm.errors import UserError
from lwm.eval.figures import heat_map, png, svg
from lwm.eval.results import Results, require_same
from lwm.eval.subject import Subject, Work, ask_subject
from lwm.eval.visual_needle.config import VisualNeedleConfig
from lwm.eval.visual_needle.evaluation import (
    EVALUATION,
    VisualNeedleEvaluation,
    identity,
    row_key,
)
from lwm.eval.visual_needle.report import VisualNeedleReport
from lwm.files import exclusive, make_folder, write_bytes
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress

RESULTS, REPORT, PICTURE, DRAWING = "results.jsonl", "report.json", "heatmap.png", "heatmap.svg"


def check(config: VisualNeedleConfig, out: Path) -> None:
    """Refuses early, before the model is loaded, an evaluation that would fail later.

    Args:
        config: The grid.
        out: The folder for the results; created if missing.

    Raises:
        UserError: A file is missing, or the folder cannot be written or holds another evaluation.
    """
    files = [config.needles, None if config.is_of_world else Path(config.haystack)]
    for file in files:
        if file is not None and not file.is_file():
            raise UserError(f"{file} is missing; give a file")
    make_folder(out)
    require_same(out / RESULTS, {"evaluation": EVALUATION, "config": identity(config)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualNeedleRun:
    """Report of an evaluation, and the work that this call did for it."""

    report: VisualNeedleReport
    work: Work


def evaluate(
    subject: Subject | LoadedModel,
    config: VisualNeedleConfig,
    out: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> VisualNeedleRun:
    """Asks every question that has no answer yet, then writes the report and the heat map.

    Each answer is appended to `results.jsonl` at once; the same call continues a stopped one, and
    one with more frames, depths or rounds asks what is new. The report covers all results.

    Args:
        subject: What is evaluated: a model in this process.
        config: The grid of frames and depths, and the questions.
        out: The folder for the results.
        progress: Called with tokens done and their total, between blocks of a prompt; may raise.

    Raises:
        UserError: See `check`; or the model reads no images, the frames are more than its context
            has room for, or the folder holds the results of another evaluation.
        KeyboardInterrupt: `progress` raised it; the message names the answers kept so far.
    """
    if isinstance(subject, LoadedModel):
        subject = Subject.of_model(subject)
    check(config, out)
    with exclusive(out):
        evaluation = VisualNeedleEvaluation(config, subject, progress=progress)
        results = Results(out / RESULTS, evaluation.header())
        work = ask_subject(evaluation, subject, results, progress=progress)
        report = VisualNeedleReport(header=results.header, rows=sorted(results.rows, key=row_key))
        write(report, out)
    return VisualNeedleRun(report=report, work=work)


def write(report: VisualNeedleReport, out: Path) -> None:
    """Writes `report.json`, `heatmap.png` and `heatmap.svg`."""
    write_bytes(out / REPORT, report.to_json().encode(errors="backslashreplace"))
    frames, depths = report.frames, report.depths
    known = {(n, d): report.score(frames=n, depth=d) for n in frames for d in depths}
    shares = [[known[n, d].accuracy if known[n, d].asked else None for n in frames] for d in depths]
    task = {"ask": "named", "draw": "generated"}[report.header["config"]["task"]]
    title = f"{report.model}: needle {task}, {report.score().accuracy:.0%}"
    counts = [[f"{known[n, d].correct:g}/{known[n, d].asked}" for n in frames] for d in depths]
    figure = heat_map(
        shares,
        [f"{n:,}" for n in frames],
        depths,
        title=title,
        counts=counts,
        note=f"{len(report.rows):,} questions, {report.header['model'].get('dtype', '')}",
        x_label="frames",
    )
    write_bytes(out / PICTURE, png(figure))
    write_bytes(out / DRAWING, svg(figure))
