"""The single needle test: a number is hidden in a long text, and the model is asked for it.

Results, report and picture go to one folder; what was answered once is never asked again.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import lwm
from lwm.console import Interruptible, waiting
from lwm.eval.answer import Answerer, ModelAnswerer, describe_model, require_context
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.haystack import Haystack, name_of, require_readable
from lwm.eval.needle.plot import heat_map
from lwm.eval.needle.prompts import Cell, Prompts
from lwm.eval.needle.report import NeedleReport
from lwm.eval.results import ResultRow, Results, require_same
from lwm.files import make_folder, write_bytes
from lwm.generate.language_model import LanguageModel

RESULTS, REPORT, PICTURE = "results.jsonl", "report.json", "heatmap.png"
SMALL = NeedleConfig(lengths=(512, 1024, 2048), depths=(0.0, 50.0, 100.0))
"""A grid for a demo: 10,752 tokens of prompts and answers, a minute for a small model on a CPU."""


def check(config: NeedleConfig, out: Path, *, context: int | None = None) -> None:
    """Refuses what would fail only after the model is loaded.

    Args:
        config: The grid.
        out: The folder for the results; it is made.
        context: Tokens that the model can hold, where that is known already.

    Raises:
        UserError: The haystack cannot be read or is far too short, a length is above the
            context, or the folder cannot be written or holds another evaluation.
    """
    longest = max(config.all_lengths)
    if context is not None:
        require_context(longest, context, "the model")
    # A generous allowance for the prompt around the haystack, which nobody has measured yet.
    least = max(1, longest - config.max_tokens - 4096)
    require_readable(config.haystack, least=least, repeat=config.repeat)
    make_folder(out)
    require_same(out / RESULTS, {"evaluation": "needle", "config": _grid(config)})


def run(model: LanguageModel, config: NeedleConfig, out: Path) -> NeedleReport:
    """Asks what has not been asked yet, then writes `report.json` and `heatmap.png`.

    Answers go to `results.jsonl` one by one; the same call goes on where the last one stopped.

    Raises:
        UserError: See `check`; or the folder holds the results of another evaluation.
        KeyboardInterrupt: Ctrl-C was pressed; the answers so far are kept.
    """
    longest = max(config.all_lengths)
    require_context(longest, model.context, model.name)
    check(config, out)
    prompts = Prompts(config, model.tokenizer, template=model.template)
    results = Results(out / RESULTS, header(config, prompts.haystack, describe_model(model)))
    begun, before = time.monotonic(), len(results.rows)
    finished, total = 0, sum(cell.length for cell in prompts.cells)
    with Interruptible() as user, waiting("asking", "tokens") as bar:

        def progress(done: int) -> None:
            bar(finished + done, total)
            user.check()

        def told(cell: Cell) -> None:
            nonlocal finished
            finished += cell.length
            progress(0)

        model_answers = ModelAnswerer(
            model, longest=longest, max_tokens=config.max_tokens, progress=progress
        )
        try:
            report = evaluate(model_answers, prompts, results, told=told)
        except KeyboardInterrupt:
            answered = f"{len(results.rows):,} of {len(prompts.cells):,} answers"
            print(
                f"stopped with {answered} in {results.path}; the same command goes on from there",
                file=sys.stderr,
            )
            raise
    write(report, out)
    asked, read = model_answers.num_asked, model_answers.num_read
    print(report.table())
    print(
        f"\n{len(results.rows) - before:,} of {len(prompts.cells):,} questions asked now: prompts "
        f"of {asked:,} tokens, {read:,} of them read ({asked - read:,} shared), "
        f"{time.monotonic() - begun:.1f} s"
    )
    return report


def small_run(model: LanguageModel) -> tuple[NeedleReport, bytes]:
    """Asks the small grid anew, keeping no files; returns the report and the heat map's PNG."""
    with tempfile.TemporaryDirectory() as folder:
        report = run(model, SMALL, Path(folder))
        return report, (Path(folder) / PICTURE).read_bytes()


def evaluate(
    answer: Answerer,
    prompts: Prompts,
    results: Results,
    *,
    told: Callable[[Cell], None] = lambda cell: None,
) -> NeedleReport:
    """Asks every cell that has no result yet, and adds each answer to the results."""
    known = {_key(row) for row in results.rows}
    for cell in prompts.cells:
        if (cell.length, cell.depth, cell.round) not in known:
            results.append(_ask(answer, prompts, cell))
        told(cell)
    return NeedleReport(header=results.header, rows=sorted(results.rows, key=_key))


def _ask(answer: Answerer, prompts: Prompts, cell: Cell) -> dict[str, Any]:
    """Returns the row of a cell: LWM's fields, whose seed is the round, and how it was built."""
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
    """Returns all that the answers hang on: results with another header are not mixed in."""
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
    """Returns the configuration as it is recorded: what is asked, without this machine's paths."""
    grid = dataclasses.asdict(config) | {
        "lengths": config.all_lengths,
        "depths": config.all_depths,
        "haystack": name_of(config.haystack),
    }
    del grid["num_lengths"], grid["num_depths"]
    return grid


def write(report: NeedleReport, out: Path) -> None:
    """Writes `report.json` and `heatmap.png`."""
    write_bytes(out / REPORT, report.to_json().encode())
    write_bytes(out / PICTURE, heat_map(report))
