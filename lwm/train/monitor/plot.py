"""Pictures of runs, from their logs: loss, loss by position, learning rate and throughput."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from lwm.data.example import MODALITIES
from lwm.errors import UserError
from lwm.files import make_folder, write_bytes
from lwm.train.monitor import plot_vqgan
from lwm.train.monitor.panels import (
    COLOURS,
    GREY,
    MARKERS,
    SMOOTHED,
    curve,
    dress,
    in_tokens,
    legend,
    lines_of,
    picture,
    power,
    say,
    whole,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODALITY_STYLES: dict[str, dict[str, Any]] = {
    "text": {"linewidth": 0.9, "linestyle": "-", "markersize": 4.5},
    "vision": {"linewidth": 0.9, "linestyle": ":", "markersize": 4.5},
}
_ALARM = "#b00020"
_STAGES: tuple[dict[str, Any], ...] = (
    {"linestyle": ":", "alpha": 0.55},
    {"linestyle": "--", "alpha": 0.75},
    {"linestyle": "-"},
)
Points = list[tuple[int, float]]
"""Steps and losses."""

Positions = list[tuple[int, int, float]]
"""Start, end and loss of the places of a context."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLog:
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
    logs = {
        name: list(lines_of(folder / "log.jsonl"))
        for folder, name in zip(folders, names, strict=True)
    }
    for folder, log in zip(folders, logs.values(), strict=True):
        if not log:
            raise UserError(f"{folder / 'log.jsonl'} holds no step yet; wait for the first")
    tell_frames = {plot_vqgan.is_log(log) for log in logs.values()}
    if len(tell_frames) > 1:
        raise UserError(
            "runs of a language model and of a VQGAN have no curve in common; draw each"
        )
    kind = out.suffix.removeprefix(".")
    if tell_frames.pop():
        drawn = plot_vqgan.draw(logs, kind=kind)
    else:
        drawn = draw(
            [read(folder, name) for folder, name in zip(folders, names, strict=True)], kind=kind
        )
    make_folder(out.parent)
    write_bytes(out, drawn)
    return out


def read(folder: Path, name: str) -> RunLog:
    """Reads the log of a run, up to where it was cut off.

    Raises:
        UserError: There is none, or it holds no step.
    """
    path = folder / "log.jsonl"
    updates: list[dict[str, Any]] = []
    held_out: dict[str, dict[str, Points]] = {}
    by_position: dict[str, list[tuple[int, Positions]]] = {}
    for line in lines_of(path):
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
    return RunLog(
        name=name,
        steps=column("step"),
        loss=np.where(np.isfinite(loss), loss, np.nan),
        learning_rate=column("learning_rate"),
        throughput=column("tokens") / np.where(seconds > 0, seconds, np.nan),
        held_out=held_out,
        by_position=by_position,
    )


def draw(runs: Sequence[RunLog], *, kind: str = "png") -> bytes:
    """Draws runs in four panels; returns a picture of a kind that matplotlib knows.

    Raises:
        UserError: It does not know it.
    """
    return picture(lambda figure: _fill(figure, runs), kind)


def _fill(figure: "Figure", runs: Sequence[RunLog]) -> None:
    (loss, position), (rate, throughput) = figure.subplots(2, 2)
    several = len(runs) > 1
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(runs))]
    for each, colour in zip(runs, colours, strict=True):
        width = width_of(each.loss)
        means = f"training, mean of {width} steps" if width > 1 else "training"
        curve(loss, each.steps, each.loss, colour, label=each.name if several else means)
        curve(rate, each.steps, each.learning_rate, colour, smooth=False)
        # The first step waits for the compiler.
        later = slice(min(1, len(each.steps) - 1), None)
        curve(throughput, each.steps[later], each.throughput[later], colour)
    _held_out(loss, runs, colours)
    _skipped(loss, runs)
    _by_position(position, runs, colours)
    steps = np.concatenate([each.steps for each in runs])
    dress(loss, steps, "Loss", "loss (nats per token)")
    dress(rate, steps, "Learning rate", "learning rate", number=power)
    dress(throughput, steps, "Throughput", "tokens per second", number=whole)
    _frame(loss, runs)
    for axes, field in ((rate, "learning_rate"), (throughput, "throughput")):
        values = np.concatenate([getattr(each, field) for each in runs])
        top = np.max(values, initial=0, where=np.isfinite(values))
        axes.set_ylim(0, 1.08 * top if top else None)
    legend(figure)
    if not several:
        figure.suptitle(runs[0].name, fontsize=11)


def _held_out(axes: "Axes", runs: Sequence[RunLog], colours: Sequence[str]) -> None:
    """Draws held-out losses: of one run each set in its colour, of several by the marker."""
    several = len(runs) > 1
    for i, source in enumerate(_sources(runs)):
        grey = GREY if several else _source_colour(i)
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


def _sources(runs: Sequence[RunLog]) -> list[str]:
    """Lists the held-out sets of all runs, in the order in which each comes first."""
    return list(dict.fromkeys(source for each in runs for source in each.held_out))


def _source_colour(number: int) -> str:
    """Chooses the colour of a held-out set of a run that has the first colour itself."""
    return COLOURS[1 + number % (len(COLOURS) - 1)]


def _skipped(axes: "Axes", runs: Sequence[RunLog]) -> None:
    """Marks the updates that were not made, at the upper edge."""
    steps = np.concatenate([each.steps[np.isnan(each.loss)] for each in runs])
    if len(steps):
        style = {"linestyle": "", "marker": "v", "markersize": 4, "clip_on": False}
        edge = axes.get_xaxis_transform()
        label = "skipped update" + ("s" if len(steps) > 1 else "")
        axes.plot(steps, np.ones(len(steps)), color=_ALARM, transform=edge, label=label, **style)


def _by_position(axes: "Axes", runs: Sequence[RunLog], colours: Sequence[str]) -> None:
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
                    axes.plot([], [], color=GREY, label=label, **style)
                    explained.add(step)
    axes.set_title("Held-out loss by position" + (", last validation" if several else ""))
    if not axes.lines:
        say(axes, "no validation")
        axes.set(xticks=[], yticks=[])
        return
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(in_tokens)
    axes.set(xlabel="position in the context (tokens)", ylabel="loss (nats per token)")


def _stages(found: list[tuple[int, Positions]]) -> list[tuple[dict[str, Any], int, Positions]]:
    """Chooses the first, the middle and the last validation, and how each is drawn."""
    if not found:
        return []
    first, middle, last = _STAGES
    chosen = {0: first, len(found) // 2: middle, len(found) - 1: last}
    return [(style, *found[i]) for i, style in sorted(chosen.items())]


def _frame(axes: "Axes", runs: Sequence[RunLog]) -> None:
    """Lets the highest in a hundred losses leave the frame, which would flatten all others."""
    losses = np.concatenate([each.loss[np.isfinite(each.loss)] for each in runs])
    if not len(losses):
        say(axes, "no finite loss")
        axes.set_yticks([])
    if len(losses) < SMOOTHED:
        return
    points = [p for each in runs for found in each.held_out.values() for p in found.values()]
    shown = [loss for each in points for _, loss in each if np.isfinite(loss)]
    low, high = min([losses.min(), *shown]), max([np.quantile(losses, 0.99), *shown])
    if low < high:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
