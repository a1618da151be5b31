"""Asks all questions of a suite of one model, and writes its report as JSON and as a page."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.eval.needle.haystack import name_of, require_readable
from lwm.eval.report.examples import PartReport
from lwm.eval.report.facts import machine, versions
from lwm.eval.report.page import write_page
from lwm.eval.subject import Subject
from lwm.eval.suite.config import OF_IMAGES, SuiteConfig
from lwm.eval.suite.images import parts_of_images
from lwm.eval.suite.parts import MAKERS, Part
from lwm.eval.suite.perplexity import perplexity_part
from lwm.eval.suite.times import Times
from lwm.files import exclusive, make_folder, write_bytes
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress

REPORT, TIMES, PAGE = "report.json", "times.json", "report.html"


def check(config: SuiteConfig, out: Path | None) -> None:
    """Refuses early, before the model is loaded, a haystack or a folder that cannot be used.

    Raises:
        UserError: The haystack cannot be read, or the folder cannot be written.
    """
    require_readable(config.haystack, least=1, repeat=True)
    if out is not None:
        make_folder(out)


def evaluate_all(
    subject: Subject | LoadedModel,
    config: SuiteConfig,
    out: Path,
    *,
    command: str = "",
    progress: Progress = lambda done, total: None,
    begin: Callable[[str], None] = lambda part: None,
) -> dict[str, Any]:
    """Runs the parts of a suite one after another; the same call continues a stopped one.

    Each part has its own folder, with its results, its report and its figures. The folder of the
    suite gets `report.json`, `report.html`, figures, and in `times.json` the time spent.

    Args:
        subject: What is evaluated; see `Subject` for other things than a loaded model.
        config: The parts and their grids.
        out: The folder.
        command: The command, for the report.
        progress: Called with tokens done and their total over all parts; may raise.
        begin: Called with the name of each part before it begins.

    Returns:
        The report, as in `report.json`.

    Raises:
        UserError: No length is within the context, a question cannot be built, a folder has the
            results of another evaluation, or the subject has failed.
        KeyboardInterrupt: `progress` raised it; the message names the answers kept so far.
    """
    if isinstance(subject, LoadedModel):
        subject = Subject.of_model(subject)
    make_folder(out)
    with exclusive(out):
        parts, left_out = _parts(config, subject)
        for part in parts:
            part.check(out)
        times, reports = Times(out / TIMES), list[PartReport]()
        total, done = sum(part.tokens for part in parts), 0
        for part in parts:
            begin(part.name)

            def moved(tokens: int, _: int, before: int = done) -> None:
                progress(before + tokens, total)

            try:
                reports += part.run(subject, out, times.during(part.name, moved))
            finally:
                times.count(part.name, write=True)
            done += part.tokens
        report = {
            "evaluation": "suite",
            "command": command,
            "model": dict(subject.description),
            "config": _recorded(config),
            "left_out": left_out,
            "versions": versions(),
            "machine": machine(subject.elsewhere),
            "files": subject.files,
            "parts": [each.to_json() for each in reports],
        }
        text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
        write_bytes(out / REPORT, text.encode(errors="backslashreplace"))
        report = json.loads(text)
        write_page(report, out / PAGE, seconds=times.seconds)
    return report


def _parts(config: SuiteConfig, subject: Subject) -> tuple[list[Part], list[str]]:
    """Returns the parts, and lines that say what is left out."""
    parts, left_out = [], list[str]()
    for name in dict.fromkeys(config.parts):
        if name in OF_IMAGES:
            continue
        grid = config.grid(name)
        grid, above = _within(grid, subject.context)
        left_out += [
            f"{name} at {length:,} tokens: above the model's context of {subject.context:,}"
            for length in above
        ]
        if grid and name == "perplexity":
            part, notes = perplexity_part(config, grid, subject)
            parts += [] if part is None else [part]
            left_out += notes
        elif grid:
            parts.append(MAKERS[name](config, grid, subject))
    of_images, notes = parts_of_images(config, subject)
    parts += of_images
    left_out += notes
    if not parts:
        raise UserError(f"nothing is left to ask of {subject.name}: {'; '.join(left_out)}")
    return parts, left_out


def _within(grid: Mapping[int, int], context: int | None) -> tuple[dict[int, int], list[int]]:
    """Splits a grid into what a context has room for, and the lengths that are too large."""
    above = [length for length in grid if context is not None and length > context]
    return {n: samples for n, samples in grid.items() if n not in above}, above


def _recorded(config: SuiteConfig) -> dict[str, Any]:
    """Returns the configuration with the resolved grids, without paths of this machine."""
    grids = {
        part: {str(length): samples for length, samples in config.grid(part).items()}
        if part not in OF_IMAGES or part == "visual"
        else config.count(part)
        for part in config.parts
    }
    fields = dataclasses.asdict(config) | {"haystack": name_of(config.haystack), "grids": grids}
    return {
        name: value
        for name, value in fields.items()
        if name not in ("lengths", "frames", "samples")
    }
