"""Tables of a report: scores with intervals and numbers of questions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lwm.eval.figures import in_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first cell of each row is its head."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    shares: Sequence[Sequence[float | None]] | None = None
    """Scores from 0 to 1 of the cells beside the heads, for their colours: a heat map."""


def percent(entry: Mapping[str, Any]) -> str:
    """Writes a score and its interval in percent."""
    low, high = entry["interval95"]
    return f"{100 * entry['score']:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def headlines(parts: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> list[Table]:
    """Returns the scores of all parts that ask questions: overall, and by length.

    Parts by context length are in a table, those by frames in another, and the rest in a third.
    """
    tables: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for title, part in zip(titles, parts, strict=True):
        if part["kind"] != "perplexity":
            own = part["report"]
            axis = next((each for each in own["axes"] if each in _NUMBERS), "")
            tables.setdefault(axis, []).append((title, own))
    return [_headline(axis, asked) for axis, asked in tables.items()]


def _headline(axis: str, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    places = sorted({each[axis] for _, own in asked for each in own["by_length"]}) if axis else []
    rows = []
    for title, own in asked:
        known = {each[axis]: each for each in own["by_length"]}
        cells = [_counted(known.get(place)) for place in places]
        rows.append([title, *cells, _counted(own["overall"]), f"{100 * own['chance']:.3g}"])
    names = {"context_length": "all lengths", "frames": "all frames"}
    return Table(
        caption="Scores in percent with their 95% intervals; n is the number of questions",
        head=["test", *(value_of(axis, each) for each in places), names.get(axis, "all"), "chance"],
        rows=rows,
    )


def grid(report: Mapping[str, Any]) -> Table | None:
    """Returns the scores of the cells over two axes as a heat map; None if there is one axis."""
    if (axes := axes_of(report)) is None:
        return None
    (first, columns), (second, rows) = axes
    known = {(cell[first], cell[second]): cell for cell in report["cells"]}
    cells = [[known.get((column, row)) for column in columns] for row in rows]
    return Table(
        caption="Found of asked, or the score, with 95% intervals",
        head=[_AXES.get(second, second), *(value_of(first, column) for column in columns)],
        rows=[
            [value_of(second, row), *map(_scored, found)]
            for row, found in zip(rows, cells, strict=True)
        ],
        shares=[[None if each is None else each["score"] for each in found] for found in cells],
    )


def listed(report: Mapping[str, Any]) -> Table | None:
    """Returns the cells of a report without lengths, one below another, with what bounds them."""
    cells = report["cells"]
    if report["by_length"] or len(report["axes"]) > 1:
        return None
    names = [name for name in ("task", "attribute") if name in cells[0]]
    bounds = {name: text for name, text in _BOUNDS.items() if name in cells[0]}
    return Table(
        caption="Scores in percent with their 95% intervals, and what they lie between",
        head=[*names, "n", "score", *bounds.values()],
        rows=[
            [
                *(str(cell[name]) for name in names),
                f"{cell['asked']:,}",
                percent(cell),
                *(f"{100 * cell[name]:.1f}" for name in bounds),
            ]
            for cell in cells
        ],
    )


_NUMBERS = ("context_length", "frames")
_AXES = {"depth_percent": "depth"}
_BOUNDS = {"through_codes": "the true clip, decoded", "prior": "without the prompt"}


def axes_of(
    report: Mapping[str, Any],
) -> tuple[tuple[str, list[Any]], tuple[str, list[Any]]] | None:
    """Returns the two axes of the cells, each with its values; None if there is one alone.

    Lengths and frames come first and are ascending, other values are in their order.
    """
    if len(report["axes"]) < 2:
        return None
    first, second = sorted(report["axes"], key=lambda axis: axis not in _NUMBERS)
    cells = report["cells"]
    columns, rows = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (first, second))
    return (first, sorted(columns) if first in _NUMBERS else columns), (second, rows)


def value_of(axis: str, value: Any) -> str:
    """Writes a value of an axis."""
    if axis == "context_length":
        return in_tokens(value)
    if axis == "frames":
        return f"{value:,} frames"
    return f"{value:g}%" if isinstance(value, float) else str(value)


def _scored(cell: Mapping[str, Any] | None) -> str:
    """Writes a cell: 4/5 where each answer is right or wrong, else its score; below, its ends."""
    if cell is None:
        return "–"
    low, high = (f"{100 * bound:.0f}" for bound in cell["interval95"])
    if "correct" in cell:
        return f"{cell['correct']}/{cell['asked']}\n{low}–{high}%"
    return f"{100 * cell['score']:.0f}%\n{low}–{high}%, n = {cell['asked']:,}"


def _counted(entry: Mapping[str, Any] | None) -> str:
    return "–" if entry is None else f"{percent(entry)}, n = {entry['asked']:,}"


def perplexity(report: Mapping[str, Any]) -> list[Table]:
    """Returns perplexity by position, and of the last tokens by the context they are given."""
    positions = Table(
        caption="Perplexity by the number of tokens before a token, with 95% intervals",
        head=["tokens before", "tokens scored", "perplexity"],
        rows=[
            [f"{each['position']:,}–{each['position_end'] - 1:,}", *_perplexity(each)]
            for each in report["cells"]
        ],
    )
    contexts = report["contexts"]["cells"]
    windows = Table(
        caption="The last tokens of each text again, with no more than so many before them",
        head=["context", "tokens scored", "perplexity", "extra loss (nats)", "p (Holm)"],
        rows=[
            [f"{each['context']:,}", *_perplexity(each), *_extra(each.get("above_whole"))]
            for each in contexts
        ],
    )
    return [positions, windows]


def _perplexity(entry: Mapping[str, Any]) -> list[str]:
    ends = entry["interval95"]
    interval = "" if ends is None else f" ({ends[0]:.2f}–{ends[1]:.2f})"
    return [f"{entry['asked']:,}", f"{entry['perplexity']:.2f}{interval}"]


def _extra(difference: Mapping[str, Any] | None) -> list[str]:
    if difference is None:
        return ["–", "–"]
    low, high = difference["interval95"]
    mean, p_value = difference["mean"], difference["p_value_holm"]
    return [f"{mean:+.3f} ({low:+.3f} to {high:+.3f})", f"{p_value:.3f}"]
