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


def percent(entry: Mapping[str, Any]) -> str:
    """Writes a score and its interval in percent."""
    low, high = entry["interval95"]
    return f"{100 * entry['score']:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def headline(parts: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> Table:
    """Returns the scores of all parts that ask questions: overall, and by length."""
    asked = [
        (title, part["report"])
        for title, part in zip(titles, parts, strict=True)
        if part["kind"] != "perplexity"
    ]
    lengths = sorted({each["context_length"] for _, own in asked for each in own["by_length"]})
    rows = []
    for title, own in asked:
        known = {each["context_length"]: each for each in own["by_length"]}
        cells = [_counted(known.get(length)) for length in lengths]
        rows.append([title, *cells, _counted(own["overall"]), f"{100 * own['chance']:g}"])
    return Table(
        caption="Scores in percent with their 95% intervals; n is the number of questions",
        head=["test", *map(in_tokens, lengths), "all lengths", "chance"],
        rows=rows,
    )


def grid(report: Mapping[str, Any]) -> Table | None:
    """Returns the scores of the cells over the lengths and one more axis; None without one."""
    if (axis := second_axis(report)) is None:
        return None
    lengths, values = axes_of(report, axis)
    known = {(cell["context_length"], cell[axis]): cell for cell in report["cells"]}
    return Table(
        caption="Scores in percent with their 95% intervals",
        head=[_AXES.get(axis, axis), *map(in_tokens, lengths)],
        rows=[
            [
                f"{value:g}%" if isinstance(value, float) else str(value),
                *(
                    percent(known[length, value]) if (length, value) in known else "–"
                    for length in lengths
                ),
            ]
            for value in values
        ],
    )


_AXES = {"depth_percent": "depth"}


def second_axis(report: Mapping[str, Any]) -> str | None:
    """Returns the axis of the cells beside the context length."""
    return next((axis for axis in report["axes"] if axis != "context_length"), None)


def axes_of(report: Mapping[str, Any], axis: str) -> tuple[list[int], list[Any]]:
    """Returns the context lengths, ascending, and the values of another axis in their order."""
    cells = report["cells"]
    lengths = sorted({cell["context_length"] for cell in cells})
    return lengths, list(dict.fromkeys(cell[axis] for cell in cells))


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
