"""Scores for model cards: of a run's last validation, and of reports that `lwm eval` wrote."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lwm.convert.card import Measured
from lwm.errors import UserError
from lwm.files import read_json
from lwm.fingerprint import Fingerprints, fingerprints, model_files, named, same_content
from lwm.formats.run_facts import RunFacts
from lwm.formats.run_folder import CHECKPOINTS, MODEL
from lwm.model.config import LlamaConfig

REPORT = "report.json"
_SETTINGS = re.compile(r"^vqgan/|config\.json( \(\d+\))?$")
"""Files that are not compared: they may get more keys while the model stays."""
_FAULTY = LookupError, TypeError, ValueError, AttributeError


def of_run(run: RunFacts) -> list[Measured]:
    """Returns the scores of a run's last validation."""
    found = []
    for name, scores in run.scores.items():
        unit, shown = ("tokens", _text_scores) if "tokens" in scores else ("frames", _frame_scores)
        with contextlib.suppress(*_FAULTY):
            how = f"validation of the run at step {run.scored_at:,}, {int(scores[unit]):,} {unit}"
            result = ", ".join(shown(scores))
            found.append(Measured(what=f"held-out set {name!r}", result=result, how=how))
    return found


def of_reports(
    source: Path, config: LlamaConfig | None, run: Path | None, given: Sequence[Path] = ()
) -> list[Measured]:
    """Returns the scores of the reports of a model.

    Args:
        source: File or folder of the model.
        config: Its configuration; None for a VQGAN.
        run: The folder of its run; reports there of other models, such as of earlier steps, are
            left out.
        given: More reports, or folders with one.

    Raises:
        UserError: One of `given` is of another model, or no report.
    """
    found, here = [], None
    asked = dict.fromkeys(path / REPORT if path.is_dir() else path for path in given)
    same = {file.resolve() for file in asked}
    own = [] if run is None else [f for f in _reports_in(run) if f.resolve() not in same]
    for file in [*own, *asked]:
        report = read_json(file) if file in asked else _read(file)
        here = here or fingerprints(named(model_files(source)))
        if _is_of(report, config, here):
            try:
                found += _scores(report)
                continue
            except _FAULTY:
                pass
        if file in asked:
            raise UserError(
                f"{file} is no report of {source} as it is now; leave it out, or evaluate again"
            )
    return found


def _reports_in(run: Path) -> list[Path]:
    """Returns the reports in a run's folder, without those of the parts of a suite."""
    files = [file for depth in ("*", "*/*") for file in sorted(run.glob(f"{depth}/{REPORT}"))]
    there = {file.parent for file in files}
    return [
        file
        for file in files
        if file.parent.parent not in there
        and file.relative_to(run).parts[0] not in (MODEL, CHECKPOINTS)
    ]


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except UserError:
        return {}


def _is_of(report: Mapping[str, Any], config: LlamaConfig | None, here: Fingerprints) -> bool:
    """Returns whether a report is of these weights, in this configuration."""
    try:
        kind = _kind(report)
        if (kind == "vqgan") != (config is None):
            return False
        made_from = report.get("fingerprints", {"model": report.get("files")})
        recorded = made_from["vqgan" if config is None else "model"]
        wanted = {name: text for name, text in recorded.items() if not _SETTINGS.search(name)}
        about = report["described" if kind == "vision" else "model"]["config"] if config else {}
        values = json.loads(json.dumps(dataclasses.asdict(config))) if config else {}
        return (
            bool(wanted)
            and all(same_content(text, here.get(name)) for name, text in wanted.items())
            and all(about[key] == value for key, value in values.items() if key in about)
        )
    except _FAULTY:
        return False


def _kind(report: Mapping[str, Any]) -> str:
    """Returns the kind of an evaluation; the reports of two do not name theirs."""
    return report.get("evaluation", "vqgan" if "vqgan" in report else "vision")


def _scores(report: Mapping[str, Any]) -> list[Measured]:
    kind = _kind(report)
    if kind == "suite":
        command = report["command"]
        found = []
        for part in report["parts"]:
            own = part["report"].get("evaluation")
            found.append(_score(own if own in _SHOWN else part["kind"], part["report"], command))
        return found
    return [_score(kind, report, report.get("command", ""))]


def _score(kind: str, report: Mapping[str, Any], command: str) -> Measured:
    how = command or _settings(report)
    if kind == "vqgan":
        result = f"{', '.join(_frame_scores(report))}; n = {int(report['frames']):,} frames"
        return Measured(what="frames encoded and decoded", result=result, how=how)
    if kind == "vision":
        pairs, share = int(report["pairs"]), float(report["codes_accuracy"])
        drawn, told = int(report["drawn"]), int(report["told"])
        result = (
            f"{drawn:,} of {pairs:,} generated, {told:,} of {pairs:,} captioned, {share:.2%} of "
            "the codes given those before"
        )
        return Measured(what="captioned images or videos", result=result, how=how)
    overall = report["overall"]
    if kind == "perplexity":
        length, segments = int(report["config"]["length"]), int(overall["segments"])
        score = f"{float(overall['perplexity']):.4g}{_interval(overall, '.4g')}"
        result = f"{score}; n = {segments:,} segments, {int(overall['asked']):,} tokens"
        used = int(report["effective_context"]["more_than"])
        more = f"; uses more than {used:,} tokens of context" if used else ""
        what = f"perplexity, segments of {length:,} tokens"
        return Measured(what=what, result=result + more, how=how)
    score = f"{float(overall['score']):.1%}{_interval(overall, '.1%')}"
    result = f"{score}; n = {int(overall['asked']):,}"
    if kind in _SHOWN:
        return Measured(what=_SHOWN[kind](report["config"]), result=result, how=how)
    lengths = [f"{int(one['context_length']):,}" for one in report["by_length"]]
    at = f", {' to '.join(dict.fromkeys([lengths[0], lengths[-1]]))} tokens"
    if kind == "ruler":
        effective = report.get("effective_length", {}).get("statement")
        more = f"; {effective}" if effective else ""
        return Measured(what=f"RULER{at}", result=result + more, how=how)
    needles, ask = int(report["config"]["needles"]), int(report["config"]["ask"])
    what = "one needle" if needles == 1 else f"{ask:,} of {needles:,} needles"
    return Measured(what=f"{what}{at}", result=result, how=how)


_SHOWN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "qa": lambda config: (
        f"questions about images and videos, rule {config['rule']}"
        f"{', asked without them' * bool(config['blind'])}"
    ),
    "adherence": lambda _: "captions of the world, generated in all attributes",
    "visual-needle": lambda config: (
        f"picture in a long video, {'generated' if config['task'] == 'draw' else 'named'}"
    ),
}
"""Names of evaluations about images and videos, which have no lengths."""


def _interval(overall: Mapping[str, Any], form: str) -> str:
    ends = overall.get("interval95")
    return f" (95%: {ends[0]:{form}} to {ends[1]:{form}})" if ends else ""


def _settings(report: Mapping[str, Any]) -> str:
    """Returns the settings of a report that does not name its command."""
    name = _kind(report)
    of_model = name == "vqgan"  # its configuration is that of the VQGAN
    settings = {} if of_model else {**report.get("config", {}), **report.get("grid", {})}
    shown = ", ".join(f"{name} {_plain(value)}" for name, value in settings.items())
    return f"lwm eval {name} with {shown}" if shown else f"lwm eval {name}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text_scores(scores: Mapping[str, Any]) -> Iterator[str]:
    for modality in ("text", "vision"):
        if (loss := scores.get(f"{modality}_loss")) is not None:
            yield f"{modality} loss {loss:.4g} nats per token"
        if (share := scores.get(f"{modality}_accuracy")) is not None:
            yield f"{modality} accuracy {share:.1%}"


def _frame_scores(scores: Mapping[str, Any]) -> Iterator[str]:
    names = {
        "psnr": "PSNR {:.2f} dB",
        "psnr_foreground": "PSNR of the foreground {:.2f} dB",
        "ssim": "SSIM {:.4f}",
        "codes_used": "{:.1%} of codes used",
        "lpips": "LPIPS {:.4f}",
        "frechet_lpips": "Fréchet distance on LPIPS features {:.3f}",
    }
    for key, form in names.items():
        if (score := scores.get(key)) is not None and score == score:  # NaN: without foreground
            yield form.format(score)
