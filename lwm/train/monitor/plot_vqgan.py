"""Pictures of the training of VQGANs: how near frames come back, and of how many codes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lwm.train.monitor.panels import (
    COLOURS,
    GREY,
    MARKERS,
    curve,
    dress,
    legend,
    picture,
    power,
    whole,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Log = Sequence[dict[str, Any]]
"""The lines of a log."""

_PARTS = {"psnr": ("-", "all pixels"), "psnr_foreground": (":", "what is drawn")}


def is_log(log: Log) -> bool:
    """Returns whether a log tells of frames."""
    return any("psnr" in line for line in log)


def draw(logs: Mapping[str, Log], *, kind: str = "png") -> bytes:
    """Draws runs, by name, in four panels; returns a picture of a kind that matplotlib knows.

    Raises:
        UserError: It does not know it.
    """
    return picture(lambda figure: _fill(figure, logs), kind)


def _fill(figure: "Figure", logs: Mapping[str, Log]) -> None:
    (psnr, codes), (rate, throughput) = figure.subplots(2, 2)
    steps = np.zeros(0)
    for number, (name, log) in enumerate(logs.items()):
        colour = COLOURS[number % len(COLOURS)]
        updates = [line for line in log if "held_out" not in line]
        at, frames, seconds = (_column(updates, key) for key in ("step", "frames", "seconds"))
        steps = np.concatenate([steps, at])
        label = name if len(logs) > 1 else "training"
        curve(psnr, at, _column(updates, "psnr"), colour, label=label)
        curve(codes, at, _column(updates, "perplexity"), colour)
        curve(rate, at, _column(updates, "learning_rate"), colour, smooth=False)
        # The first step waits for the compiler.
        later = slice(min(1, len(at) - 1), None)
        curve(throughput, at[later], (frames / np.maximum(seconds, 1e-9))[later], colour)
    _held_out(psnr, logs)
    dress(psnr, steps, "PSNR", "dB")
    dress(codes, steps, "Codes: perplexity of their use", "codes", number=whole)
    dress(rate, steps, "Learning rate", "learning rate", number=power)
    dress(throughput, steps, "Throughput", "frames per second", number=whole)
    for axes in (codes, rate, throughput):
        top = axes.dataLim.y1
        axes.set_ylim(0, 1.08 * top if top > 0 else None)
    legend(figure)
    if len(logs) == 1:
        figure.suptitle(next(iter(logs)), fontsize=11)


def _column(updates: Log, key: str) -> np.ndarray:
    values = [line.get(key) for line in updates]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _held_out(axes: "Axes", logs: Mapping[str, Log]) -> None:
    """Draws PSNR on held-out sets: of one run each in its colour, of several by the marker."""
    several = len(logs) > 1
    found = [[line for line in log if "held_out" in line] for log in logs.values()]
    sources = dict.fromkeys(name for log in found for line in log for name in line["held_out"])
    for i, source in enumerate(sources):
        shared = GREY if several else COLOURS[1 + i % (len(COLOURS) - 1)]
        marker: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "markersize": 4.5}
        for key, (line_style, what) in _PARTS.items():
            style = marker | {"linestyle": line_style, "linewidth": 0.9, "markeredgecolor": "white"}
            for number, log in enumerate(found):
                there = [line for line in log if source in line["held_out"]]
                steps = [line["step"] for line in there]
                values = [line["held_out"][source][key] for line in there]
                own = COLOURS[number % len(COLOURS)] if several else shared
                axes.plot(steps, values, color=own, **style)
            axes.plot([], [], color=shared, label=f"held-out {source}, {what}", **style)
