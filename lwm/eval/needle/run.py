"""Single-needle retrieval: asks a model for a number hidden in a long text.

Results, report and heat map go to one folder; an answered question is not asked again.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import lwm
from lwm.eval.answer import (
    Answerer,
    ModelAnswerer,
    describe_model,
    model_fingerprints,
)
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.haystack import Haystack, name_of, require_readable
from lwm.eval.needle.plot import heat_map
from lwm.eval.needle.prompts import Cell, Prompts
from lwm.eval.needle.report import NeedleReport
from lwm.eval.results import ResultRow, Results, require_same
from lwm.eval.subject import require_context
from lwm.files import exclusive, make_folder, write_bytes
from lwm.generate.language_model import LanguageModel
from lwm.progress import Progress

RESULTS, REPORT, PICTURE = "results.jsonl", "report.json", "heatmap.png"
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
            context, or the folder cannot be written or holds another evaluation.
    """
    longest = max(config.all_lengths)
    if context is not None:
        require_context(longest, context, "the model")
    # A generous allowance for the prompt around the haystack, which is not measured yet.
    least = max(1, longest - config.max_tokens - 4096)
    require_readable(config.haystack, least=least, repeat=config.repeat)
    make_folder(out)
    require_same(out / RESULTS, {"evaluation": "needle", "config": _grid(config)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleRun:
    """Report of an evaluation, and the work that this call did for it."""

    report: NeedleReport
    num_new: int
    """Answers of this call; the others were in the folder already."""
    prompt_tokens: int
    """Tokens of the prompts of this call."""
    tokens_read: int
    """Tokens of these prompts that were computed; the others were shared with an earlier one."""


def evaluate(
    model: LanguageModel,
    config: NeedleConfig,
    out: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> NeedleRun:
    """Asks every question that has no answer yet, then writes `report.json` and `heatmap.png`.

    Each answer is appended to `results.jsonl` at once; the same call continues a stopped one.

    Args:
        model: The model to evaluate.
        config: The grid of lengths and depths.
        out: The folder for the results.
        progress: Called with tokens done and their total, between blocks of a prompt; may raise.

    Raises:
        UserError: See `check`; or the folder holds the results of another evaluation, or
            another process writes to it.
        KeyboardInterrupt: `progress` raised it; the message names the answers kept so far.
    """
    longest = max(config.all_lengths)
    require_context(longest, model.context, model.name)
    check(config, out)
    prompts = Prompts(config, model.tokenizer, template=model.template)
    described = header(config, prompts.haystack, describe_model(model))
    described["files"] = model_fingerprints(model)
    with exclusive(out):
        results = Results(out / RESULTS, described)
        before, finished = len(results.rows), 0
        total = sum(cell.length for cell in prompts.cells)

        def report_tokens(done: int) -> None:
            progress(finished + done, total)

        def finish(cell: Cell) -> None:
            nonlocal finished
            finished += cell.length
            report_tokens(0)

        # Prompts share the haystack: room for it, and for a few more of what follows a needle.
        answer = ModelAnswerer(
            model,
            tokens=min(total, 4 * longest),
            max_tokens=config.max_tokens,
            progress=report_tokens,
        )
        try:
            report = ask(answer, prompts, results, finish=finish)
        except KeyboardInterrupt:
            answered = f"{len(results.rows):,} of {len(prompts.cells):,} answers"
            raise KeyboardInterrupt(
                f"stopped with {answered} in {results.path}; run the same command to continue"
            ) from None
        write(report, out)
    return NeedleRun(
        report=report,
        num_new=len(results.rows) - before,
        prompt_tokens=answer.num_asked,
        tokens_read=answer.num_read,
    )


def ask(
    answer: Answerer,
    prompts: Prompts,
    results: Results,
    *,
    finish: Callable[[Cell], None] = lambda cell: None,
) -> NeedleReport:
    """Asks every cell that has no result yet and appends each answer to the results.

    `finish` is called after each cell, also after one that had its result already.
    """
    known = {_key(row) for row in results.rows}
    for cell in prompts.cells:
        if (cell.length, cell.depth, cell.round) not in known:
            results.append(_ask(answer, prompts, cell))
        finish(cell)
    return NeedleReport(header=results.header, rows=sorted(results.rows, key=_key))


def _ask(answer: Answerer, prompts: Prompts, cell: Cell) -> dict[str, Any]:
    """Returns the result row of a cell: LWM's fields (`seed` is the round), and its true size."""
    prompt = prompts.build(cell)
    response = answer(prompt.ids)
    return {
        "context_length": cell.length,
        "depth_percent": cell.depth,
        "response": response,
        "answer": prompt.number,
        "correct": prompt.number in response,
        "seed": cell.round,
        "city": prompt.city,
        "built_length": prompt.length,
        "built_depth_percent": round(prompt.depth, 2),
    }


def _key(row: ResultRow) -> tuple[int, float, int]:
    return row["context_length"], row["depth_percent"], row["seed"]


def header(config: NeedleConfig, haystack: Haystack, model: dict[str, Any]) -> dict[str, Any]:
    """Returns everything that the answers depend on; results with another header are refused."""
    return {
        "evaluation": "needle",
        "model": model,
        "config": _grid(config),
        "haystack": {
            "tokens": haystack.num_tokens,
            "is_repeated": haystack.is_repeated,
            "sha256": haystack.sha256,
        },
        "versions": {"lwm": lwm.__version__, "jax": jax.__version__},
    }


def _grid(config: NeedleConfig) -> dict[str, Any]:
    """Returns the configuration as recorded: resolved values, without paths of this machine."""
    grid = dataclasses.asdict(config) | {
        "lengths": config.all_lengths,
        "depths": config.all_depths,
        "haystack": name_of(config.haystack),
    }
    del grid["num_lengths"], grid["num_depths"]
    return grid


def write(report: NeedleReport, out: Path) -> None:
    """Writes `report.json` and `heatmap.png`."""
    write_bytes(out / REPORT, report.to_json().encode(errors="backslashreplace"))
    write_bytes(out / PICTURE, heat_map(report))
