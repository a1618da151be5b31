"""Figures of a report, as elements of its page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwm.eval.figures import Series, curve, png, svg
from lwm.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy(
    parts: Sequence[Mapping[str, Any]], titles: Sequence[str], model: str
) -> "Figure | None":
    """Plots the score of each part that asks questions over the context length."""
    lines = []
    for part, title in zip(parts, titles, strict=True):
        if not _is_by_length(part):
            continue
        entries = part["report"]["by_length"]
        ends = [entry["interval95"] for entry in entries]
        lines.append(
            Series(
                name=title,
                xs=[entry["context_length"] for entry in entries],
                ys=[entry["score"] for entry in entries],
                low=[low for low, _ in ends],
                high=[high for _, high in ends],
            )
        )
    if not lines:
        return None
    levels = {part["report"]["chance"] for part in parts if _is_by_length(part)}
    level = ("chance", levels.pop()) if len(levels) == 1 else None
    return curve(lines, title=f"{model}: score by context length", y_label="score", level=level)


def _is_by_length(part: Mapping[str, Any]) -> bool:
    return part["kind"] != "perplexity" and "context_length" in part["report"]["axes"]


def perplexity(report: Mapping[str, Any], model: str) -> "Figure":
    """Plots perplexity by position, and of the last tokens by the context they are given."""
    lines = []
    for name, axis, entries in (
        ("by position", "position", report["cells"]),
        ("last tokens,\ncontext limited", "context", report["contexts"]["cells"]),
    ):
        ends = [entry["interval95"] for entry in entries if entry["interval95"] is not None]
        lines.append(
            Series(
                name=name,
                xs=[entry[axis] for entry in entries],
                ys=[entry["perplexity"] for entry in entries],
                low=[low for low, _ in ends],
                high=[high for _, high in ends],
            )
        )
    return curve(
        lines,
        title=f"{model}: perplexity",
        y_label="perplexity",
        x_label="tokens of context",
        limits=None,
    )


def save(figure: "Figure", name: str, folder: Path) -> None:
    """Writes a figure as PNG and SVG files."""
    write_bytes(folder / f"{name}.png", png(figure))
    write_bytes(folder / f"{name}.svg", svg(figure))


def element(figure: "Figure | None", name: str) -> str | None:
    """Returns a figure as an element of a page, on which its name is unique."""
    return None if figure is None else svg(figure, name=name).decode()
