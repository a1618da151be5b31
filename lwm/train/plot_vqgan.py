"""Pictures of the training of VQGANs: how near frames come back, and of how many codes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lwm.train.panels import COLOURS, MARKERS, curve, dress, legend, picture, power, whole

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
        _held_out(psnr, log, None if len(logs) == 1 else colour)
    dress(psnr, steps, "PSNR", "dB")
    dress(codes, steps, "Codes: perplexity of their use", "codes", number=whole)
    dress(rate, steps, "Learning rate", "learning rate", number=power)
    dress(throughput, steps, "Throughput", "frames per second", number=whole)
    for axes in (codes, rate, throughput):
        axes.set_ylim(0)
    legend(figure)
    if len(logs) == 1:
        figure.suptitle(next(iter(logs)), fontsize=11)


def _column(updates: Log, key: str) -> np.ndarray:
    values = [line.get(key) for line in updates]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _held_out(axes: "Axes", log: Log, colour: str | None) -> None:
    """Draws PSNR on held-out sets, each in a colour of its own if none is given."""
    found = [line for line in log if "held_out" in line]
    names = dict.fromkeys(name for line in found for name in line["held_out"])
    for number, name in enumerate(names):
        there = [line for line in found if name in line["held_out"]]
        own = colour or COLOURS[1 + number % (len(COLOURS) - 1)]
        for key, (style, what) in _PARTS.items():
            axes.plot(
                [line["step"] for line in there],
                [line["held_out"][name][key] for line in there],
                color=own,
                linestyle=style,
                linewidth=0.9,
                marker=MARKERS[number % len(MARKERS)],
                markersize=4.5,
                markeredgecolor="white",
                label=f"held-out {name}, {what}" if colour is None else None,
            )
