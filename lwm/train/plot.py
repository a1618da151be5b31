"""Pictures of runs, from their logs: loss, loss by position, learning rate and throughput."""

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from lwm.data.batch import MODALITIES
from lwm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; their yellow is
# left out, being faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*X"
DPI = 200
_SMOOTHED = 50
"""Means over one part in this many of a run are the smooth line."""
_FAINT = 0.25
_MODALITY_STYLES: dict[str, dict[str, Any]] = {
    "text": {"linewidth": 0.9, "linestyle": "-", "markersize": 4.5},
    "vision": {"linewidth": 0.9, "linestyle": ":", "markersize": 4.5},
}
_ALARM, _GREY = "#b00020", "#555555"
_STAGES: tuple[dict[str, Any], ...] = (
    {"linestyle": ":", "alpha": 0.55},
    {"linestyle": "--", "alpha": 0.75},
    {"linestyle": "-"},
)
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

Points = list[tuple[int, float]]
"""Steps and losses."""

Positions = list[tuple[int, int, float]]
"""Start, end and loss of the places of a context."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the log of a run says."""

    name: str
    steps: Float[np.ndarray, " N"]
    loss: Float[np.ndarray, " N"]
    """Not finite where an update was skipped."""
    learning_rate: Float[np.ndarray, " N"]
    throughput: Float[np.ndarray, " N"]
    """Tokens a second."""
    held_out: dict[str, dict[str, Points]]
    """Losses of each held-out set, of each modality it has."""
    by_position: dict[str, list[tuple[int, Positions]]]
    """Steps and losses by position of each held-out set."""


def run(folders: tuple[Path, ...], out: Path | None = None) -> Path:
    """Draws one run, or several over each other; returns the picture's path.

    Args:
        folders: Of the runs.
        out: The picture, its kind given by its name: .png, .pdf, .svg; if not given, `plot.png` in
            the folder of the run, of several in the current one.

    Raises:
        UserError: There is no log, it holds no step, or the picture cannot be written.
    """
    if not folders:
        raise UserError("no run is given")
    if out is None:
        out = (folders[0] if len(folders) == 1 else Path()) / "plot.png"
    names = [folder.absolute().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    runs = [read(folder, name) for folder, name in zip(folders, names, strict=True)]
    picture = draw(runs, kind=out.suffix.removeprefix("."))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(picture)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    return out


def read(folder: Path, name: str) -> Run:
    """Reads the log of a run, up to where it was cut off.

    Raises:
        UserError: There is none, or it holds no step.
    """
    path = folder / "log.jsonl"
    updates: list[dict[str, Any]] = []
    held_out: dict[str, dict[str, Points]] = {}
    by_position: dict[str, list[tuple[int, Positions]]] = {}
    for line in _lines(path):
        for source, found in line.get("held_out", {}).items():
            for modality in MODALITIES:
                if (loss := found.get(f"{modality}_loss")) is not None:
                    points = held_out.setdefault(source, {}).setdefault(modality, [])
                    points.append((line["step"], loss))
            along = [
                (a, b, loss) for a, b, loss, tokens in found.get("by_position") or () if tokens
            ]
            if along:
                by_position.setdefault(source, []).append((line["step"], along))
        if "held_out" not in line:
            updates.append(line)
    if not updates:
        raise UserError(f"{path} holds no step yet; wait for the first")

    def column(key: str) -> Float[np.ndarray, " N"]:
        values = [line.get(key) for line in updates]
        return np.array([np.nan if v is None else v for v in values], np.float64)

    seconds = column("seconds")
    loss = np.where([line.get("finite", True) for line in updates], column("loss"), np.nan)
    return Run(
        name=name,
        steps=column("step"),
        loss=np.where(np.isfinite(loss), loss, np.nan),
        learning_rate=column("learning_rate"),
        throughput=column("tokens") / np.where(seconds > 0, seconds, np.nan),
        held_out=held_out,
        by_position=by_position,
    )


def draw(runs: Sequence[Run], *, kind: str = "png") -> bytes:
    """Draws runs in four panels; returns a picture of a kind that matplotlib knows.

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
        _fill(figure, runs)
        picture = io.BytesIO()
        figure.savefig(picture, format=kind, metadata={"Software": None} if kind == "png" else None)
    return picture.getvalue()


def _fill(figure: "Figure", runs: Sequence[Run]) -> None:
    (loss, position), (rate, throughput) = figure.subplots(2, 2)
    several = len(runs) > 1
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(runs))]
    for each, colour in zip(runs, colours, strict=True):
        width = _width(each.loss)
        means = f"training, mean of {width} steps" if width > 1 else "training"
        _curve(loss, each.steps, each.loss, colour, label=each.name if several else means)
        _curve(rate, each.steps, each.learning_rate, colour, smooth=False)
        # The first step waits for the compiler.
        later = slice(min(1, len(each.steps) - 1), None)
        _curve(throughput, each.steps[later], each.throughput[later], colour)
    _held_out(loss, runs, colours)
    _skipped(loss, runs)
    _by_position(position, runs, colours)
    steps = np.concatenate([each.steps for each in runs])
    _dress(loss, steps, "Loss", "loss (nats per token)")
    _dress(rate, steps, "Learning rate", "learning rate", number=_power)
    _dress(throughput, steps, "Throughput", "tokens per second", number=_whole)
    _frame(loss, runs)
    for axes, field in ((rate, "learning_rate"), (throughput, "throughput")):
        values = np.concatenate([getattr(each, field) for each in runs])
        top = np.max(values, initial=0, where=np.isfinite(values))
        axes.set_ylim(0, 1.08 * top if top else None)
    _legend(figure)
    if not several:
        figure.suptitle(runs[0].name, fontsize=11)


def _curve(
    axes: "Axes",
    steps: Float[np.ndarray, " N"],
    values: Float[np.ndarray, " N"],
    colour: str,
    *,
    label: str | None = None,
    smooth: bool = True,
) -> None:
    """Draws values faintly and their moving mean over them, or values alone; points, if few."""
    finite, width = np.isfinite(values), _width(values)
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


def _width(values: Float[np.ndarray, " N"]) -> int:
    """Chooses how many values a mean is of; an odd number, 1 in short runs."""
    return len(values) // _SMOOTHED // 2 * 2 + 1


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


def _held_out(axes: "Axes", runs: Sequence[Run], colours: Sequence[str]) -> None:
    """Draws held-out losses: of one run each set in its colour, of several by the marker."""
    several = len(runs) > 1
    for i, source in enumerate(_sources(runs)):
        grey = _GREY if several else _source_colour(i)
        used: set[str] = set()
        for each, own in zip(runs, colours, strict=True):
            for modality, points in each.held_out.get(source, {}).items():
                steps, losses = zip(*points, strict=True)
                colour = own if several else grey
                style = _MODALITY_STYLES[modality] | {"markeredgecolor": "white", "zorder": 3}
                axes.plot(steps, losses, color=colour, marker=MARKERS[i % len(MARKERS)], **style)
                used.add(modality)
        for modality in sorted(used):
            what = f"held-out {source}" + (f" ({modality})" if len(used) > 1 else "")
            style = _MODALITY_STYLES[modality] | {"marker": MARKERS[i % len(MARKERS)]}
            axes.plot([], [], color=grey, label=what, **style)


def _sources(runs: Sequence[Run]) -> list[str]:
    """Lists the held-out sets of all runs, in the order in which each comes first."""
    return list(dict.fromkeys(source for each in runs for source in each.held_out))


def _source_colour(number: int) -> str:
    """Chooses the colour of a held-out set of a run that has the first colour itself."""
    return COLOURS[1 + number % (len(COLOURS) - 1)]


def _skipped(axes: "Axes", runs: Sequence[Run]) -> None:
    """Marks the updates that were not made, at the upper edge."""
    steps = np.concatenate([each.steps[np.isnan(each.loss)] for each in runs])
    if len(steps):
        style = {"linestyle": "", "marker": "v", "markersize": 4, "clip_on": False}
        edge = axes.get_xaxis_transform()
        label = "skipped update" + ("s" if len(steps) > 1 else "")
        axes.plot(steps, np.ones(len(steps)), color=_ALARM, transform=edge, label=label, **style)


def _by_position(axes: "Axes", runs: Sequence[Run], colours: Sequence[str]) -> None:
    """Draws the loss over the place in the context: of one run thrice, of several at their ends."""
    several, explained = len(runs) > 1, set()
    for i, source in enumerate(_sources(runs)):
        for each, own in zip(runs, colours, strict=True):
            stages = _stages(each.by_position.get(source, []))
            for style, step, along in stages[-1:] if several else stages:
                starts, ends, losses = zip(*along, strict=True)
                places = (np.array(starts) + np.array(ends)) / 2
                colour, marker = own if several else _source_colour(i), MARKERS[i % len(MARKERS)]
                axes.plot(places, losses, color=colour, marker=marker, markersize=3.5, **style)
                if not several and step not in explained:
                    label = f"by position: step {step:,}"
                    axes.plot([], [], color=_GREY, label=label, **style)
                    explained.add(step)
    axes.set_title("Held-out loss by position" + (", last validation" if several else ""))
    if not axes.lines:
        _say(axes, "no validation")
        axes.set(xticks=[], yticks=[])
        return
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(_tokens)
    axes.set(xlabel="position in the context (tokens)", ylabel="loss (nats per token)")


def _legend(figure: "Figure") -> None:
    """Explains all panels below them, where no line is hidden."""
    handles, labels = [], []
    for axes in figure.axes:
        more, named = axes.get_legend_handles_labels()
        handles, labels = handles + more, labels + named
    columns = min(4, len(labels)) or 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _say(axes: "Axes", what: str) -> None:
    axes.text(0.5, 0.5, what, transform=axes.transAxes, ha="center", color=_GREY)


def _stages(found: list[tuple[int, Positions]]) -> list[tuple[dict[str, Any], int, Positions]]:
    """Chooses the first, the middle and the last validation, and how each is drawn."""
    if not found:
        return []
    first, middle, last = _STAGES
    chosen = {0: first, len(found) // 2: middle, len(found) - 1: last}
    return [(style, *found[i]) for i, style in sorted(chosen.items())]


def _dress(
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
    axes.xaxis.set_major_formatter(_whole)
    if number is not None:
        axes.yaxis.set_major_formatter(number)


def _frame(axes: "Axes", runs: Sequence[Run]) -> None:
    """Lets the highest in a hundred losses leave the frame, which would flatten all others."""
    losses = np.concatenate([each.loss[np.isfinite(each.loss)] for each in runs])
    if not len(losses):
        _say(axes, "no finite loss")
        axes.set_yticks([])
    if len(losses) < _SMOOTHED:
        return
    points = [p for each in runs for found in each.held_out.values() for p in found.values()]
    shown = [loss for each in points for _, loss in each if np.isfinite(loss)]
    low, high = min([losses.min(), *shown]), max([np.quantile(losses, 0.99), *shown])
    if low < high:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _whole(value: float, _: object) -> str:
    return f"{value:,.0f}"


def _power(value: float, _: object) -> str:
    """Writes 0.0003 as 3e-4."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}" if value else "0"


def _tokens(value: float, _: object) -> str:
    """Writes 8192 as 8K."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
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
