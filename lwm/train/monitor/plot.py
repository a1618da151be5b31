"""Figures of runs from their logs: loss or PSNR, held-out scores, learning rate and throughput."""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from lwm.errors import UserError, several
from lwm.files import make_folder, write_bytes
from lwm.train.monitor.run_log import LANGUAGE, VQGAN, RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers, without its yellow, too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*X"
DPI = 200
SMOOTHED = 50
"""A moving mean spans one part in this many of a run."""
_DEVIATIONS = 1.96
"""Standard errors of an interval of 95%."""
_GREY, _ALARM = "#555555", "#b00020"
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
_POINTS: dict[str, Any] = {
    "linewidth": 0.9,
    "markersize": 4.5,
    "markeredgecolor": "white",
    "zorder": 3,
}
_STAGES: tuple[dict[str, Any], ...] = (
    {"linestyle": ":", "alpha": 0.55},
    {"linestyle": "--", "alpha": 0.75},
    {"linestyle": "-"},
)
Over = Literal["steps", "tokens"]
Number = str | Callable[[float, float], str]
"""Format of the numbers of an axis."""


def plot_runs(
    folders: Path | str | Sequence[Path | str], out: Path | None = None, *, over: Over = "steps"
) -> Path:
    """Plots one run, or several over each other; returns the path of the figure.

    Args:
        folders: Folders of runs.
        over: Plots over steps, or over tokens trained on (frames of a VQGAN).
        out: The figure; its suffix sets the format: .png, .pdf, .svg. By default `plot.png` in the
            folder of the run, for several in the current one.

    Raises:
        UserError: There is no log, it holds no step, or the figure cannot be written.
    """
    paths = [Path(folder) for folder in several(folders)]
    if not paths:
        raise UserError("no run is given")
    if out is None:
        out = (paths[0] if len(paths) == 1 else Path()) / "plot.png"
    names = [folder.absolute().name for folder in paths]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in paths]
    runs = [RunLog.read(folder, name) for folder, name in zip(paths, names, strict=True)]
    plotted = plot(runs, format=out.suffix.lower().removeprefix("."), over=over)
    make_folder(out.parent)
    write_bytes(out, plotted)
    return out


def plot(runs: Sequence[RunLog], *, format: str = "png", over: Over = "steps") -> bytes:
    """Plots runs in four panels; returns a file of a format that matplotlib knows.

    See `plot_runs`.

    Raises:
        UserError: matplotlib does not know it, or the runs are of two kinds.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if len({each.kind.score for each in runs}) > 1:
        raise UserError("runs of a language model and of a VQGAN share no curve; plot them apart")
    with mpl.rc_context(_STYLE):
        # Not through pyplot: no global state, no display, safe beside a program's own figures.
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        figure = Figure(figsize=(9, 6), dpi=DPI, layout=layout)
        formats = figure.canvas.get_supported_filetypes()
        if format not in formats:
            raise UserError(f"{format!r} is no format of a figure; use one of {', '.join(formats)}")
        if over == "tokens":
            _fill(figure, [each.over_tokens() for each in runs], runs[0].kind.counted)
        else:
            _fill(figure, runs, "step")
        file = io.BytesIO()
        metadata = {"Software": None} if format == "png" else None
        figure.savefig(file, format=format, metadata=metadata)
    return file.getvalue()


def _fill(figure: "Figure", runs: Sequence[RunLog], unit: str) -> None:
    (score, second), (rate, throughput) = figure.subplots(2, 2)
    kind, several = runs[0].kind, len(runs) > 1
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(runs))]
    for each, colour in zip(runs, colours, strict=True):
        steps, width = each.column("step"), _width(each.updates)
        label = "training" + (f", mean of {width} steps" if width > 1 else "")
        _curve(score, steps, each.scores, colour, label=each.name if several else label)
        _curve(rate, steps, each.column("learning_rate"), colour, smooth=False)
        later = slice(min(1, len(steps) - 1), None)  # the first step includes compilation
        _curve(throughput, steps[later], each.throughput[later], colour)
        if kind is VQGAN:
            _curve(second, steps, each.column("perplexity"), colour)
    _plot_held_out(score, runs, colours)
    _plot_skipped(score, runs)
    steps = np.concatenate([each.column("step") for each in runs])
    label = functools.partial(_label, steps, unit)
    label(score, kind.title, kind.unit)
    label(rate, "Learning rate", "learning rate", power)
    label(throughput, "Throughput", f"{kind.counted} per second", "{x:,.0f}")
    from_zero = [rate, throughput]
    if kind is VQGAN:
        label(second, "Codes: perplexity of their use", "codes", "{x:,.0f}")
        from_zero.append(second)
    else:
        _plot_positions(second, runs, colours, unit)
        _clip_outliers(score, runs)
    for axes in (score, rate, throughput, *([second] if kind is VQGAN else [])):
        _mark_stages(axes, runs)
    for axes in from_zero:
        top = axes.dataLim.y1
        axes.set_ylim(0, 1.08 * top if top > 0 else None)
    count = sum(len(axes.get_legend_handles_labels()[0]) for axes in figure.axes)
    figure.legend(loc="outside lower center", ncols=min(4, count) or 1, frameon=False)
    if not several:
        figure.suptitle(runs[0].name, fontsize=11)


def _plot_held_out(axes: "Axes", runs: Sequence[RunLog], colours: Sequence[str]) -> None:
    """Plots held-out scores: a colour for each set of one run, a marker for each set of several."""
    several = len(runs) > 1
    for i, source in enumerate(_sources(runs)):
        shared = _GREY if several else COLOURS[1 + i % (len(COLOURS) - 1)]
        used: dict[str, dict[str, Any]] = {}
        for key, (line_style, label) in runs[0].kind.held_out.items():
            style = _POINTS | {"linestyle": line_style, "marker": MARKERS[i % len(MARKERS)]}
            for each, own in zip(runs, colours, strict=True):
                if points := each.held_out(source, key):
                    axes.plot(*zip(*points, strict=True), color=own if several else shared, **style)
                    used[label] = style
        for label, style in used.items():
            name = f"held-out {source}" + (f" ({label})" if len(used) > 1 else "")
            axes.plot([], [], color=shared, label=name, **style)


def _plot_skipped(axes: "Axes", runs: Sequence[RunLog]) -> None:
    """Marks skipped updates at the upper edge."""
    steps = np.concatenate([each.column("step")[np.isnan(each.scores)] for each in runs])
    if len(steps):
        style = {"linestyle": "", "marker": "v", "markersize": 4, "clip_on": False}
        edge = axes.get_xaxis_transform()
        label = "skipped update" + ("s" if len(steps) > 1 else "")
        axes.plot(steps, np.ones(len(steps)), color=_ALARM, transform=edge, label=label, **style)


def _mark_stages(axes: "Axes", runs: Sequence[RunLog]) -> None:
    """Draws a line where each stage of one curriculum begins, with its name."""
    if len(runs) > 1:
        return
    for step, name in runs[0].stages:
        axes.axvline(step, color=_GREY, linewidth=0.6, linestyle=":", zorder=1)
        axes.annotate(
            name,
            (step, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(2, -2),
            textcoords="offset points",
            rotation=90,
            ha="left",
            va="top",
            fontsize=6.5,
            color=_GREY,
        )


def _plot_positions(
    axes: "Axes", runs: Sequence[RunLog], colours: Sequence[str], unit: str
) -> None:
    """Plots loss by position: the first, middle and last of one run, the last of several.

    Bars are 95% intervals that take tokens as independent.
    """
    several, explained = len(runs) > 1, set()
    for i, source in enumerate(_sources(runs)):
        for each, own in zip(runs, colours, strict=True):
            colour = own if several else COLOURS[1 + i % (len(COLOURS) - 1)]
            found = each.by_position(source)
            stages = dict(zip((0, len(found) // 2, len(found) - 1), _STAGES, strict=True))
            chosen = sorted(stages.items()) if found else []
            for at, style in chosen[-1:] if several else chosen:
                (step, rows), marker = found[at], MARKERS[i % len(MARKERS)]
                starts, ends, losses, errors = np.array(rows, float).T
                middles = (starts + ends) / 2
                drawn = {"color": colour, "marker": marker, "markersize": 3.5, "elinewidth": 0.8}
                axes.errorbar(middles, losses, _DEVIATIONS * errors, **drawn, **style)
                if not several and step not in explained:
                    name = f"step {step:,}" if unit == "step" else f"{step:,} {unit}"
                    axes.plot([], [], color=_GREY, label=f"by position: {name}", **style)
                    explained.add(step)
    axes.set_title("Held-out loss by position" + (", last validation" if several else ""))
    if not axes.lines:
        _write(axes, "no validation")
        axes.set(xticks=[], yticks=[])
        return
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(in_tokens)
    axes.set(xlabel="position in the context (tokens)", ylabel="loss (nats per token)")


def _clip_outliers(axes: "Axes", runs: Sequence[RunLog]) -> None:
    """Lets the highest 1% of losses leave the panel; they would flatten all others."""
    losses = np.concatenate([each.scores[np.isfinite(each.scores)] for each in runs])
    if not len(losses):
        _write(axes, "no finite loss")
        axes.set_yticks([])
    if len(losses) < SMOOTHED:
        return
    keys = [(source, key) for source in _sources(runs) for key in LANGUAGE.held_out]
    points = [point for each in runs for key in keys for point in each.held_out(*key)]
    shown = [loss for _, loss in points if np.isfinite(loss)]
    low, high = min([losses.min(), *shown]), max([np.quantile(losses, 0.99), *shown])
    if low < high:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _sources(runs: Sequence[RunLog]) -> list[str]:
    """Returns the held-out sets of all runs, in order of first appearance."""
    lines = (line for each in runs for line in each.validations)
    return list(dict.fromkeys(source for line in lines for source in line["held_out"]))


def _curve(
    axes: "Axes",
    steps: np.ndarray,
    values: np.ndarray,
    color: str,
    *,
    label: str | None = None,
    smooth: bool = True,
) -> None:
    """Plots values, faint under their moving mean in long runs; as points if there are few."""
    finite, width = np.isfinite(values), _width(values)
    if not finite.any():
        return
    if finite.sum() < 3:
        axes.plot(steps[finite], values[finite], "o", color=color, markersize=4, label=label)
    elif smooth and width > 1:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
        mean = moving_mean(values, width)
        axes.plot(steps, mean, color=color, linewidth=1.6, label=label)
    else:
        axes.plot(steps[finite], values[finite], color=color, linewidth=1.4, label=label)


def _width(values: Any) -> int:
    """Returns the span of a moving mean: an odd number, 1 in short runs."""
    return len(values) // SMOOTHED // 2 * 2 + 1


def moving_mean(values: Float[np.ndarray, " N"], width: int) -> Float[np.ndarray, " N"]:
    """Returns the mean of `width` values around each, without NaN; NaN where there is no other.

    The window shrinks towards the ends, on both sides alike and down to a quarter, so that the
    mean follows a steep curve.
    """
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(values))
    half = np.clip(np.minimum(places, places[::-1]), width // 8, width // 2)
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def _write(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=_GREY)


def _label(
    steps: np.ndarray,
    over: str,
    axes: "Axes",
    title: str,
    unit: str,
    number: Number | None = None,
) -> None:
    from matplotlib.ticker import MaxNLocator

    margin = max(0.02 * (steps.max() - steps.min()), 1)
    axes.set(title=title, xlabel=over, ylabel=unit)
    axes.set_xlim(steps.min() - margin, steps.max() + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}" if over == "step" else in_millions)
    if number is not None:
        axes.yaxis.set_major_formatter(number)


def power(value: float, _: object) -> str:
    """Writes 0.0003 as 3e-4."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}" if value else "0"


def in_millions(value: float, _: object) -> str:
    """Writes 1500000 as 1.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def in_tokens(value: float, _: object) -> str:
    """Writes 8192 as 8K."""
    if value < 1 << 10:
        return f"{value:g}"
    return f"{value / (1 << 10):g}K" if value < 1 << 20 else f"{value / (1 << 20):g}M"
