"""Page of a comparison of models: differences with intervals and tests, as tables and curves."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwm.eval.figures import Series, curve, in_tokens
from lwm.eval.report.figures import element
from lwm.eval.report.page import render
from lwm.eval.report.tables import Table
from lwm.files import make_folder, write_bytes
from lwm.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT, PAGE = "comparison.json", "comparison.html"
EXPLANATION = (
    "A difference is the mean score of the second model less that of the first, on the questions "
    "that both have answered. Where both had the same prompts, the interval is a bootstrap over "
    "pairs, and p is that of a paired permutation test; p (Holm) is adjusted for the tests of all "
    "parts together, of all lengths, and of all tasks. An interval that leaves out 0 is a "
    "difference that the choice of questions does not explain; one that has 0 in it does not show "
    "that the models are equal. Perplexity is compared by the loss in nats: less is better."
)


def write_comparison(report: Mapping[str, Any], out: Path) -> Path:
    """Writes `comparison.json` and `comparison.html`; returns the page's path."""
    make_folder(out)
    text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
    write_bytes(out / REPORT, text.encode(errors="backslashreplace"))
    sections = []
    for number, comparison in enumerate(report["comparisons"], 1):
        drawn = element(_figure(report["first"], comparison), f"difference-{number}")
        sections.append((comparison["second"], table(report["first"], comparison), drawn))
    page = render(
        "comparison.html.j2",
        title=f"Differences to {report['first']}",
        report=report,
        sections=sections,
        explanation=EXPLANATION,
    )
    write_bytes(out / PAGE, page.encode())
    return out / PAGE


def table(first: str, comparison: Mapping[str, Any]) -> Table:
    """Returns the differences of a model, per part, task and length."""
    second = comparison["second"]
    return Table(
        caption=f"{second} less {first}; scores in percent, with 95% intervals",
        head=["test", "length", "n", "first", "second", "difference", "p", "p (Holm)"],
        rows=[
            [change.get("task", part["part"]), *_cells(change, in_nats=part["unit"] == "nats")]
            for part in comparison["parts"]
            for change in [*part["by_task"], *part["by_length"], part["overall"]]
        ],
    )


def _cells(change: Mapping[str, Any], *, in_nats: bool) -> Iterable[str]:
    length = change.get("context_length")
    yield "all" if length is None else in_tokens(length)
    yield f"{change['asked']:,}"
    low, high = change["interval95"]
    if in_nats:
        yield from (f"{change['first']:.3f} nats", f"{change['second']:.3f} nats")
        yield f"{change['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
    else:
        yield from (f"{100 * change['first']:.1f}", f"{100 * change['second']:.1f}")
        yield f"{100 * change['difference']:+.1f} ({100 * low:+.0f} to {100 * high:+.0f})"
    for name in ("p_value", "p_value_holm"):
        yield "–" if change[name] is None else f"{change[name]:.4f}"


def _figure(first: str, comparison: Mapping[str, Any]) -> "Figure | None":
    """Plots the differences of scores over the context length."""
    lines = [
        Series(
            name=part["part"],
            xs=[change["context_length"] for change in part["by_length"]],
            ys=[change["difference"] for change in part["by_length"]],
            low=[change["interval95"][0] for change in part["by_length"]],
            high=[change["interval95"][1] for change in part["by_length"]],
        )
        for part in comparison["parts"]
        if part["by_length"]
    ]
    if not lines:
        return None
    title = f"{printable(comparison['second'])} less {printable(first)}"
    return curve(
        lines, title=title, y_label="difference of scores", limits=None, level=("no difference", 0)
    )
