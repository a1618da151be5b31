"""RULER of a model: asks the questions of its tasks, and writes report and heat map."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

import lwm
from lwm.eval.figures import heat_map, png, svg
from lwm.eval.needle.haystack import name_of, require_readable
from lwm.eval.results import ResultRow, Results, require_same
from lwm.eval.ruler.config import RulerConfig
from lwm.eval.ruler.questions import Questions
from lwm.eval.ruler.report import RulerReport
from lwm.eval.ruler.task import Ruler, question_files
from lwm.eval.ruler.vocabulary import vocabulary
from lwm.eval.subject import Subject, Work, ask_subject, require_context
from lwm.files import exclusive, make_folder, write_bytes
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress

RESULTS, REPORT = "results.jsonl", "report.json"
PICTURE, DRAWING = "heatmap.png", "heatmap.svg"


def check(config: RulerConfig, out: Path, *, context: int | None = None) -> None:
    """Refuses early, before the model is loaded, an evaluation that would fail later.

    Args:
        config: Tasks and lengths.
        out: The folder for the results; created if missing.
        context: The model's context in tokens, if it is known already.

    Raises:
        UserError: A file cannot be read, a length is above the context, or the folder cannot be
            written or holds another evaluation.
    """
    require_context(max(config.all_lengths), context, "the model")
    require_readable(config.haystack, least=1, repeat=True)
    questions = _sources(question_files(config))
    make_folder(out)
    recorded = {"evaluation": "ruler", "config": _identity(config), "questions": questions}
    require_same(out / RESULTS, recorded)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulerRun:
    """Report of an evaluation, and the work that this call did for it."""

    report: RulerReport
    work: Work


def evaluate(
    subject: Subject | LoadedModel,
    config: RulerConfig,
    out: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> RulerRun:
    """Asks every question that has no answer yet, then writes the report and the heat map.

    Each answer is appended to `results.jsonl` at once; the same call continues a stopped one, and
    one with more tasks, lengths or samples asks what is new. The report covers all results.

    Args:
        subject: What is evaluated; see `Subject` for other things than a loaded model.
        config: Tasks, lengths and samples.
        out: The folder for the results.
        progress: Called with tokens done and their total, between blocks of a prompt; may raise.

    Raises:
        UserError: See `check`; or a length has no room for a task, the folder holds the results
            of another evaluation, or another process writes to it.
        KeyboardInterrupt: `progress` raised it; the message names the answers kept so far.
    """
    if isinstance(subject, LoadedModel):
        subject = Subject.of_model(subject)
    subject.require_context(max(config.all_lengths))
    check(config, out)
    ruler = Ruler(config, subject.tokenizer, template=subject.template)
    with exclusive(out):
        results = Results(out / RESULTS, header(config, ruler, subject))
        work = ask_subject(ruler, subject, results, progress=progress)
        report = RulerReport(
            header=results.header,
            rows=sorted(results.rows, key=ruler.row_key),
            threshold=config.threshold,
        )
        write(report, out)
    return RulerRun(report=report, work=work)


def header(config: RulerConfig, ruler: Ruler, subject: Subject) -> dict[str, Any]:
    """Returns what the answers depend on, and apart from it the grid, which may grow."""
    return {
        "evaluation": "ruler",
        "model": dict(subject.description),
        "config": _identity(config),
        "grid": {
            "tasks": sorted(config.all_tasks),
            "lengths": list(config.all_lengths),
            "samples": config.samples,
        },
        "haystack": {"characters": len(ruler.essay.text), "sha256": ruler.essay.sha256},
        "questions": _sources(ruler.files),
        "vocabulary": {"words": len(vocabulary().words), "sha256": vocabulary().sha256},
        "versions": {"lwm": lwm.__version__, "jax": jax.__version__},
        "files": subject.files,
    }


def _identity(config: RulerConfig) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "prompt": config.prompt,
        "haystack": name_of(config.haystack),
    }


def _sources(files: dict[str, Questions]) -> dict[str, ResultRow | str]:
    """Returns the file of each question-answering task, or that its questions are generated."""
    return {
        task: {"name": files[task].name, "sha256": files[task].sha256}
        if task in files
        else "generated"
        for task in ("qa_1", "qa_2")
    }


def write(report: RulerReport, out: Path) -> None:
    """Writes `report.json`, `heatmap.png` and `heatmap.svg`."""
    write_bytes(out / REPORT, report.to_json().encode(errors="backslashreplace"))
    means = [[report.mean([task], [n]) for n in report.lengths] for task in report.tasks]
    overall = report.mean()
    figure = heat_map(
        [[None if mean is None else mean.score for mean in row] for row in means],
        report.lengths,
        report.tasks,
        title=f"{report.header['model']['name']}: RULER, {overall.score:.0%}" if overall else "",
        note=f"{len(report.rows):,} questions, {report.header['model'].get('dtype', '')}",
        y_label="task",
        label="score",
    )
    write_bytes(out / PICTURE, png(figure))
    write_bytes(out / DRAWING, svg(figure))
