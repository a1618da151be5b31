"""Needle retrieval: asks a model for numbers hidden in a long text.

Results, report and heat map go to one folder; an answered question is not asked again.
"""

import dataclasses
from pathlib import Path

from lwm.eval.figures import heat_map, png, svg
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.evaluation import (
    NeedleEvaluation,
    earlier_config,
    identity,
    is_earlier,
    require_own_grid,
    row_key,
)
from lwm.eval.needle.haystack import require_readable
from lwm.eval.needle.report import NeedleReport
from lwm.eval.results import Results, read_header, require_same
from lwm.eval.subject import Subject, Work, ask_subject, require_context
from lwm.files import exclusive, make_folder, write_bytes
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress

RESULTS, REPORT, PICTURE, DRAWING = "results.jsonl", "report.json", "heatmap.png", "heatmap.svg"
SMALL = NeedleConfig(lengths=(512, 1024, 2048), depths=(0.0, 50.0, 100.0))
"""Grid for a demo: 10,752 tokens of prompts and answers, a minute for a small model on a CPU."""


def check(config: NeedleConfig, out: Path, *, context: int | None = None) -> None:
    """Refuses early, before the model is loaded, an evaluation that would fail later.

    Args:
        config: The grid.
        out: The folder for the results; created if missing.
        context: The model's context in tokens, if it is known already.

    Raises:
        UserError: The haystack cannot be read or is far too short, a length is above the
            context, or the folder cannot be written, holds another evaluation, or cannot grow.
    """
    longest = max(config.all_lengths)
    require_context(longest, context, "the model")
    # A generous allowance for the prompt around the haystack, which is not measured yet.
    least = max(1, longest - config.answer_tokens - 4096)
    require_readable(config.haystack, least=least, repeat=config.repeat)
    make_folder(out)
    _require_fitting(config, out / RESULTS)


def _require_fitting(config: NeedleConfig, path: Path) -> bool:
    """Refuses results of another configuration; returns whether an earlier version began them."""
    there = read_header(path)
    earlier = is_earlier(there)
    if there is not None and earlier:
        require_own_grid(there, config, path)
    recorded = earlier_config(config) if earlier else identity(config)
    require_same(path, {"evaluation": "needle", "config": recorded})
    return earlier


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleRun:
    """Report of an evaluation, and the work that this call did for it."""

    report: NeedleReport
    work: Work


def evaluate(
    subject: Subject | LoadedModel,
    config: NeedleConfig,
    out: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> NeedleRun:
    """Asks every question that has no answer yet, then writes the report and the heat map.

    Each answer is appended to `results.jsonl` at once; the same call continues a stopped one, and
    one with more lengths, depths or rounds asks what is new. The report covers all results.

    Args:
        subject: What is evaluated; see `Subject` for other things than a loaded model.
        config: The grid of lengths and depths, and the questions.
        out: The folder for the results.
        progress: Called with tokens done and their total, between blocks of a prompt; may raise.

    Raises:
        UserError: See `check`; or the folder holds the results of another evaluation, or
            another process writes to it.
        KeyboardInterrupt: `progress` raised it; the message names the answers kept so far.
    """
    if isinstance(subject, LoadedModel):
        subject = Subject.of_model(subject)
    subject.require_context(max(config.all_lengths))
    check(config, out)
    with exclusive(out):
        earlier = _require_fitting(config, out / RESULTS)
        evaluation = NeedleEvaluation(config, subject, earlier=earlier)
        results = Results(out / RESULTS, evaluation.header())
        work = ask_subject(evaluation, subject, results, progress=progress)
        report = NeedleReport(header=results.header, rows=sorted(results.rows, key=row_key))
        write(report, out)
    return NeedleRun(report=report, work=work)


def write(report: NeedleReport, out: Path) -> None:
    """Writes `report.json`, and for single needles `heatmap.png` and `heatmap.svg`."""
    write_bytes(out / REPORT, report.to_json().encode(errors="backslashreplace"))
    if report.depths:
        lengths, depths = report.lengths, report.depths
        scores = [[report.score(length=n, depth=d) for n in lengths] for d in depths]
        figure = heat_map(
            [[score.accuracy for score in row] for row in scores],
            lengths,
            depths,
            title=f"{report.model}: single needle, {report.score().accuracy:.0%}",
            note=report.note,
            counts=[[f"{score.correct:g}/{score.asked}" for score in row] for row in scores],
        )
        write_bytes(out / PICTURE, png(figure))
        write_bytes(out / DRAWING, svg(figure))
