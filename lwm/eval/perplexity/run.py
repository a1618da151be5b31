"""Perplexity by position over long documents, and with contexts of limited length.

Results, report and figure go to one folder; a unit of work that has a result is not done again.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import lwm
from lwm.eval.answer import describe_model, model_fingerprints
from lwm.eval.figures import png, svg
from lwm.eval.perplexity.config import PerplexityConfig
from lwm.eval.perplexity.report import PerplexityReport
from lwm.eval.perplexity.segments import Segment, read_segments, require_readable, text_files
from lwm.eval.results import Results, require_same
from lwm.eval.scoring import ScoreRequest, score
from lwm.eval.subject import require_context
from lwm.files import ASSETS, exclusive, make_folder, write_bytes
from lwm.fingerprint import fingerprints
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress

RESULTS, REPORT, PICTURE, DRAWING = "results.jsonl", "report.json", "curve.png", "curve.svg"


def check(config: PerplexityConfig, files: Sequence[Path], out: Path) -> None:
    """Refuses early, before the model is loaded, a measurement that would fail later.

    Raises:
        UserError: A file cannot be read, or the folder cannot be written or holds another
            evaluation.
    """
    require_readable(files)
    make_folder(out)
    require_same(out / RESULTS, {"evaluation": "perplexity", "config": _fixed(config)})


def evaluate(
    model: LoadedModel,
    files: Sequence[Path],
    config: PerplexityConfig,
    out: Path,
    *,
    rows: int = 1,
    progress: Progress = lambda done, total: None,
) -> PerplexityReport:
    """Scores what has no result yet, then writes `report.json`, `curve.png` and `curve.svg`.

    Each unit of work, a segment in a context, is appended to `results.jsonl` at once; the same
    call continues a stopped one. More windows or segments may be asked for later.

    Args:
        model: The model.
        files: Documents; see `lwm.eval.perplexity.segments.read_segments`.
        config: Segments and contexts.
        out: The folder for the results.
        rows: Prompts that are scored together.
        progress: Called with tokens done and their total; may raise.

    Raises:
        UserError: See `check` and `read_segments`; a segment is longer than the context; or the
            folder holds the results of another evaluation, or another process writes to it.
    """
    require_context(config.length, model.context, model.name)
    check(config, files, out)
    with exclusive(out):
        results = Results(out / RESULTS, _header(model, files, config))
        grid = results.header["grid"]
        config = dataclasses.replace(
            config, windows=tuple(grid["windows"]), segments=grid["segments"]
        )
        segments = read_segments(files, model.tokenizer, config)
        units = [
            _Unit(segment, context)
            for segment in segments
            for context in (config.length, *config.all_windows)
        ]
        _score(model, units, config, results, rows=rows, progress=progress)
        report = PerplexityReport(header=results.header, rows=results.rows)
        write_bytes(out / REPORT, report.to_json().encode(errors="backslashreplace"))
        figure = report.figure()
        write_bytes(out / PICTURE, png(figure))
        write_bytes(out / DRAWING, svg(figure))
    return report


class _Unit(NamedTuple):
    """A segment in a context: its length, or that of a window."""

    segment: Segment
    context: int

    @property
    def key(self) -> tuple[str, int, int]:
        """Fields of a result that distinguish the unit."""
        return self.segment.document, self.segment.number, self.context

    def requests(self, targets: int) -> list[ScoreRequest]:
        """Returns the prompts to score."""
        if self.context == len(self.segment.ids):
            return [self.segment.whole()]
        return list(self.segment.windows(self.context, targets))


def _score(
    model: LoadedModel,
    units: Sequence[_Unit],
    config: PerplexityConfig,
    results: Results,
    *,
    rows: int,
    progress: Progress,
) -> None:
    """Scores the units that have no result yet."""
    known = {(row["document"], row["segment"], row["context"]) for row in results.rows}
    sizes = {
        unit.key: [len(request.ids) for request in unit.requests(config.targets)] for unit in units
    }
    left = [unit for unit in units if unit.key not in known]
    total = sum(map(sum, sizes.values()))
    done = total - sum(sum(sizes[unit.key]) for unit in left)
    model.engine.reserve(rows * config.length)

    def requests() -> Iterator[ScoreRequest]:
        for number, unit in enumerate(left):
            for part, request in enumerate(unit.requests(config.targets)):
                yield dataclasses.replace(request, tag=(number, part))

    parts: dict[int, dict[int, Sequence[float]]] = {}

    def reading(tokens: int) -> None:
        progress(done + tokens, total)

    progress(done, total)
    for scored in score(model, requests(), rows=rows, progress=reading):
        number, part = scored.request.tag
        unit = left[number]
        found = parts.setdefault(number, {})
        found[part] = scored.logprobs
        done += len(scored.request.ids)
        if len(found) == len(sizes[unit.key]):
            losses = [-value for part in sorted(found) for value in found[part]]
            results.append(_row(unit, losses, config.targets))
            del parts[number]
        progress(done, total)


def _row(unit: _Unit, losses: Sequence[float], targets: int) -> dict[str, Any]:
    """Returns the result of a unit; losses are negative log-likelihoods in nats."""
    row: dict[str, Any] = {
        "document": unit.segment.document,
        "segment": unit.segment.number,
        "context": unit.context,
        "targets": targets,
        "targets_nll": math.fsum(losses[-targets:]),
        # Shows that two models read the same tokens.
        "prompt_sha256": hashlib.sha256(str(list(unit.segment.ids)).encode()).hexdigest()[:16],
    }
    if unit.context == len(unit.segment.ids):
        row["by_position"] = by_position(losses)
    return row


def by_position(losses: Sequence[float]) -> list[tuple[int, int, float, int]]:
    """Sums losses, the first of which has one token before it, over powers of two of positions.

    Returns:
        First position, end, sum and number of tokens of each bucket.
    """
    cells, first = [], 1
    while first <= len(losses):
        inside = losses[first - 1 : 2 * first - 1]
        cells.append((first, first + len(inside), math.fsum(inside), len(inside)))
        first *= 2
    return cells


def _header(model: LoadedModel, files: Sequence[Path], config: PerplexityConfig) -> dict[str, Any]:
    """Returns everything that the results depend on; results with another header are refused."""
    texts = text_files(files or [ASSETS / "moby-dick"])
    return {
        "evaluation": "perplexity",
        "model": describe_model(model),
        "config": _fixed(config),
        "grid": {"windows": list(config.all_windows), "segments": config.segments},
        "texts": fingerprints(texts),
        "versions": {"lwm": lwm.__version__, "jax": jax.__version__},
        "files": model_fingerprints(model),
    }


def _fixed(config: PerplexityConfig) -> dict[str, Any]:
    """Returns the configuration without what may grow."""
    return {"length": config.length, "targets": config.targets}
