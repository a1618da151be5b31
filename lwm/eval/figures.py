"""Heat maps and curves of evaluations, as PNG and SVG; equal values give equal bytes."""

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Red to green with increasing lightness, so that it also works in grey.
COLOURS = ("#7f0f1d", "#c8402f", "#e57a3c", "#edb34b", "#b5e39a")
# M. Okabe and K. Ito's, which the colour-blind can distinguish, without the pale ones.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vX"
DPI = 150
INK = "#000000"
_MOST_LABELS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a figure, and the interval of each of its points."""

    name: str
    xs: Sequence[int | float]
    ys: Sequence[int | float]
    low: Sequence[int | float] = ()
    """Lower ends of the intervals, or nothing."""
    high: Sequence[int | float] = ()


def heat_map(
    values: Sequence[Sequence[int | float | None]],
    xs: Sequence[int | float | str],
    ys: Sequence[int | float | str],
    *,
    title: str,
    note: str = "",
    counts: Sequence[Sequence[str | None]] | None = None,
    x_label: str = "context length (tokens)",
    y_label: str = "depth of the needle (%)",
    label: str = "accuracy",
) -> "Figure":
    """Plots scores from 0 to 1 over a grid, the first row on top.

    Args:
        values: A row for each of `ys`, a score for each of `xs`; None where nothing was asked.
        xs: Context lengths, or names.
        ys: Depths, or names, from top to bottom.
        title: Stands above.
        note: Stands below the title, smaller.
        counts: Texts of the cells, such as 4/5; None: the scores in percent.
        x_label: Meaning of `xs`.
        y_label: Meaning of `ys`.
        label: Meaning of the scores.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    shares = [[math.nan if share is None else share for share in row] for row in values]
    # Not pyplot: it has global state and may open a display.
    figure = Figure(
        figsize=(3.2 + 0.6 * min(len(xs), 24), 1.9 + 0.4 * min(len(ys), 24)),
        dpi=DPI,
        layout="constrained",
    )
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("found", COLOURS)
    few = max(len(xs), len(ys)) <= _MOST_LABELS
    image = axes.pcolormesh(
        shares, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1 if few else 0.2
    )
    axes.invert_yaxis()
    if few:
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                text = None if counts is None else counts[y][x]
                _write_share(axes, x, y, share, text)
    columns, rows = _labelled(len(xs)), _labelled(len(ys))
    axes.set_xticks([i + 0.5 for i in columns], [in_tokens(xs[i]) for i in columns])
    axes.set_yticks([i + 0.5 for i in rows], [_named(ys[i]) for i in rows])
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if note:
        figure.suptitle(_plain(title), fontsize=10)
        axes.set_title(_plain(note), fontsize=7, color="#555555")
    else:
        axes.set_title(_plain(title), fontsize=10)
    figure.colorbar(image, label=label)
    return _settled(figure)


def curve(
    series: Sequence[Series],
    *,
    title: str,
    y_label: str = "accuracy",
    x_label: str = "context length (tokens)",
    limits: tuple[int | float, int | float] | None = (0.0, 1.0),
    level: tuple[str, int | float] | None = None,
) -> "Figure":
    """Plots lines over numbers of tokens on a logarithmic axis, with their intervals.

    Args:
        series: The lines.
        title: Stands above.
        y_label: Meaning of the values.
        x_label: Meaning of the numbers of tokens.
        limits: Ends of the vertical axis; None: as the values need.
        level: Name and height of a dashed line, such as the chance level.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(series):
        colour = LINES[number % len(LINES)]
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(line.xs, line.ys, color=colour, marker=marker, ms=4, lw=1.6, label=line.name)
        if len(line.low):
            axes.fill_between(line.xs, line.low, line.high, color=colour, alpha=0.15, lw=0)
    if level is not None:
        axes.axhline(level[1], color="#808080", ls="--", lw=1, label=level[0])
    places = sorted({x for line in series for x in line.xs})
    axes.set_xscale("log", base=2)
    shown = [places[i] for i in _labelled(len(places))]
    axes.set_xticks(shown, [in_tokens(x) for x in shown])
    axes.minorticks_off()
    if limits is not None:
        margin = 0.03 * (limits[1] - limits[0])
        axes.set_ylim(limits[0] - margin, limits[1] + margin)
    axes.grid(color="#808080", alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(_plain(title), fontsize=10)
    if len(series) + (level is not None) > 1:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _settled(figure)


def png(figure: "Figure") -> bytes:
    """Returns the figure as a PNG file, without a date."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def svg(figure: "Figure", *, name: str = "") -> bytes:
    """Returns the figure as an SVG file with letters as text, without a date.

    Args:
        figure: The figure.
        name: For a figure within a page: the start of its ids, which must differ on the page. Its
            ground is transparent and its letters have the colour of the text around it.
    """
    import matplotlib

    data = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": "lwm", "svg.fonttype": "none"}):
        figure.savefig(data, format="svg", metadata=metadata, transparent=bool(name))
    text = data.getvalue().decode()
    return (_inline(text, name) if name else text).encode()


def _inline(text: str, name: str) -> str:
    """Turns an SVG file into an element of a page."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\1{name}-", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    # Text has no colour of its own in such a file, and lines are black.
    text = re.sub(rf"(stroke|fill): {INK}\b", r"\1: currentColor", text)
    text = re.sub(r'<text style="(?![^"]*fill:)', '<text style="fill: currentColor; ', text)
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1)


def in_tokens(length: int | float | str) -> str:
    """Writes multiples of 1024 and 1024² as K and M."""
    if isinstance(length, str):
        return _plain(length)
    for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if length and length % unit == 0:
            return f"{length / unit:.0f}{letter}"
    return f"{length:,.0f}"


def _settled(figure: "Figure") -> "Figure":
    """Places the parts once, since each drawing would move them a little further."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _write_share(axes: Any, x: int, y: int, share: int | float, text: str | None) -> None:
    if not math.isnan(share):
        place = {"ha": "center", "va": "center", "fontsize": 8}
        shade = "white" if share < 0.4 else "#000001"  # not the ink of a page, on any ground
        axes.text(x + 0.5, y + 0.5, text or f"{share:.0%}", color=shade, **place)


def _named(value: int | float | str) -> str:
    return _plain(value) if isinstance(value, str) else f"{value:g}"


def _plain(text: str) -> str:
    """Escapes what matplotlib takes for the start of a formula."""
    return text.replace("$", r"\$")


def _labelled(count: int) -> list[int]:
    """Returns the numbers of the ticks that get a label, the first and the last among them."""
    step = max(1, -(-count // _MOST_LABELS))
    found = list(range(0, count, step))
    if found:
        found[-1] = count - 1  # nearer to the last label than labels are to each other
    return found
