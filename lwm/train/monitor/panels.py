"""What pictures of runs are drawn with: curves over steps, their dress, and the log behind them."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from lwm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; their yellow is
# left out, being faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*X"
DPI = 200
SMOOTHED = 50
"""Means over one part in this many of a run are the smooth line."""
_FAINT = 0.25
GREY = "#555555"
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def picture(fill: Callable[["Figure"], None], kind: str) -> bytes:
    """Returns a picture, of a kind that matplotlib knows, of what `fill` draws.

    Raises:
        UserError: It does not know it.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(_STYLE):
        # Not through pyplot: no global state, no display, safe beside a program's own figures.
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        figure = Figure(figsize=(9, 6), dpi=DPI, layout=layout)
        kinds = figure.canvas.get_supported_filetypes()
        if kind not in kinds:
            raise UserError(f"{kind!r} is no kind of picture; there are {', '.join(kinds)}")
        fill(figure)
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind, metadata={"Software": None} if kind == "png" else None)
    return drawn.getvalue()


def curve(
    axes: "Axes",
    steps: Float[np.ndarray, " N"],
    values: Float[np.ndarray, " N"],
    colour: str,
    *,
    label: str | None = None,
    smooth: bool = True,
) -> None:
    """Draws values faintly and their moving mean over them, or values alone; points, if few."""
    finite, width = np.isfinite(values), width_of(values)
    if not finite.any():
        return
    if finite.sum() < 3:
        axes.plot(steps[finite], values[finite], "o", color=colour, markersize=4, label=label)
    elif smooth and width > 1:
        axes.plot(steps, values, color=colour, alpha=_FAINT, linewidth=0.7)
        mean = moving_mean(values, width)
        axes.plot(steps, mean, color=colour, linewidth=1.6, label=label)
    else:
        axes.plot(steps[finite], values[finite], color=colour, linewidth=1.4, label=label)


def width_of(values: Float[np.ndarray, " N"]) -> int:
    """Chooses how many values a mean is of; an odd number, 1 in short runs."""
    return len(values) // SMOOTHED // 2 * 2 + 1


def moving_mean(values: Float[np.ndarray, " N"], width: int) -> Float[np.ndarray, " N"]:
    """Returns means over `width` places around each, NaN left out; NaN where there is no other.

    Towards the ends the places become fewer on both sides alike, down to a quarter, so that a mean
    of a steep course lies on it.
    """
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(values))
    half = np.clip(np.minimum(places, places[::-1]), width // 8, width // 2)
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def legend(figure: "Figure") -> None:
    """Explains all panels below them, where no line is hidden."""
    handles, labels = [], []
    for axes in figure.axes:
        more, named = axes.get_legend_handles_labels()
        handles, labels = handles + more, labels + named
    columns = min(4, len(labels)) or 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def say(axes: "Axes", what: str) -> None:
    """Writes in the middle of an empty panel."""
    axes.text(0.5, 0.5, what, transform=axes.transAxes, ha="center", color=GREY)


def dress(
    axes: "Axes",
    steps: Float[np.ndarray, " N"],
    title: str,
    unit: str,
    *,
    number: Callable[[float, float], str] | None = None,
) -> None:
    """Names a panel over steps and its axes."""
    from matplotlib.ticker import MaxNLocator

    margin = max(0.02 * (steps.max() - steps.min()), 1)
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.set_xlim(steps.min() - margin, steps.max() + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(whole)
    if number is not None:
        axes.yaxis.set_major_formatter(number)


def whole(value: float, _: object) -> str:
    """Writes 12345.6 as 12,346."""
    return f"{value:,.0f}"


def power(value: float, _: object) -> str:
    """Writes 0.0003 as 3e-4."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}" if value else "0"


def in_tokens(value: float, _: object) -> str:
    """Writes 8192 as 8K."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a log; the last one may have been cut off."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no log.jsonl; give the folder of a run") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or "step" not in value:
                raise ValueError
        except ValueError:
            if number == len(lines):
                return
            raise UserError(f"{path}:{number} is no line of a log") from None
        yield value
