"""Page of a report: one HTML file with its figures, without scripts and network."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from lwm.eval.report import figures, tables
from lwm.eval.report.tables import Table
from lwm.eval.report.texts import READING, About, about
from lwm.files import write_bytes
from lwm.text import printable, well_formed, without_controls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Part of a page."""

    name: str
    about: About
    statement: str
    """Findings besides the scores, in a sentence; or nothing."""
    figure: str | None
    tables: Sequence[Table]
    examples: Sequence[Mapping[str, Any]]
    facts: Mapping[str, str]


def write_page(report: Mapping[str, Any], path: Path, *, seconds: Mapping[str, float]) -> None:
    """Writes the page of a suite's report, and its curve as files beside it.

    Args:
        report: As in `report.json`.
        path: The page.
        seconds: Time spent on each part, which is on the page only.
    """
    model, parts = report["model"]["name"], report["parts"]
    abouts = [about(part["kind"], part["report"]["config"]) for part in parts]
    curve = figures.accuracy(parts, [each.title for each in abouts], printable(model))
    if curve is not None:
        figures.save(curve, "accuracy", path.parent)
    headlines, statements = headlines_of(report)
    text = render(
        "evaluation.html.j2",
        title=f"Long context: {model}",
        report=report,
        headlines=headlines,
        statements=statements,
        curve=figures.element(curve, "accuracy"),
        sections=[
            _section(part, each, printable(model)) for part, each in zip(parts, abouts, strict=True)
        ],
        facts=_facts(report),
        seconds={name: _duration(spent) for name, spent in seconds.items()},
        total=_duration(sum(seconds.values())),
        reading=READING,
    )
    write_bytes(path, text.encode())


def headlines_of(report: Mapping[str, Any]) -> tuple[list[Table], list[str]]:
    """Returns the scores of all parts, and what was found besides, in sentences."""
    parts = report["parts"]
    titles = [about(part["kind"], part["report"]["config"]).title for part in parts]
    return tables.headlines(parts, titles), [line for part in parts if (line := _statement(part))]


def render(template: str, **values: Any) -> str:
    """Fills a template of the package; all values are escaped.

    Characters that HTML cannot hold are left out.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lwm", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return without_controls(well_formed(environment.get_template(template).render(**values)))


def _section(part: Mapping[str, Any], text: About, model: str) -> Section:
    report, figure = part["report"], None
    if part["kind"] == "perplexity":
        shown = tables.perplexity(report)
        figure = figures.perplexity(report, model)
    else:
        found = (tables.grid(report), tables.listed(report))
        shown = [table for table in found if table is not None]
    return Section(
        name=part["name"],
        about=text,
        statement=_statement(part),
        figure=figures.element(figure, part["name"]),
        tables=shown,
        examples=part["examples"],
        facts={
            name: _plain(report[name])
            for name in ("config", "haystack", "needles")
            if name in report
        },
    )


def _statement(part: Mapping[str, Any]) -> str:
    """Returns RULER's effective length, the context that a model uses, or a bound of the scores."""
    report = part["report"]
    if "possible" in report:
        share = f"{100 * report['possible']:.1f}%"
        return f"The needles as the VQGAN shows them would score {share} if they were generated."
    if "effective_length" in report:
        return f"RULER's {report['effective_length']['statement']}."
    if "effective_context" not in report:
        return ""
    used = report["effective_context"]["more_than"]
    overall = f"Perplexity {report['overall']['perplexity']:.2f}"
    segments = report["overall"]["segments"]
    if not used:
        return (
            f"{overall}; no shorter context is significantly worse than the whole one "
            f"({segments} texts)."
        )
    return f"{overall}; the model uses more than {used:,} tokens of context ({segments} texts)."


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    """Returns model, configuration, versions and hardware in plain text."""
    model, machine = report["model"], report["machine"]
    found = {name: _plain(value) for name, value in model.items() if name != "config"}
    found["configuration"] = _plain(model.get("config", {}))
    memory = {name: f"{size / 2**30:.1f} GiB" for name, size in machine.items() if "memory" in name}
    return {
        **{f"model: {name}": value for name, value in found.items()},
        "evaluation": _plain(report["config"]),
        "versions": _plain(report["versions"]),
        "hardware": _plain(machine | memory),
    }


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_plain(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
