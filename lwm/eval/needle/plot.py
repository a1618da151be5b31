"""Heat map of an evaluation, after the needle figures of the LWM paper."""

import io

from lwm.eval.needle.report import NeedleReport

# Red to green with increasing lightness, so that it also works in grey.
COLOURS = ("#7f0f1d", "#c8402f", "#e57a3c", "#edb34b", "#b5e39a")
DPI = 150
_MOST_LABELS = 20


def heat_map(report: NeedleReport) -> bytes:
    """Plots accuracy over context length (horizontal) and depth (vertical); returns a PNG."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    lengths, depths = report.lengths, report.depths
    accuracy = [[report.score(length=n, depth=d).accuracy for n in lengths] for d in depths]
    # Not pyplot: it has global state and may open a display.
    figure = Figure(
        figsize=(3.2 + 0.6 * min(len(lengths), 24), 1.9 + 0.4 * min(len(depths), 24)),
        dpi=DPI,
        layout="constrained",
    )
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("found", COLOURS)
    few = max(len(lengths), len(depths)) <= _MOST_LABELS
    image = axes.pcolormesh(
        accuracy, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1 if few else 0.2
    )
    axes.invert_yaxis()
    if few:
        for y, row in enumerate(accuracy):
            for x, share in enumerate(row):
                shade = "white" if share < 0.4 else "black"
                place = {"ha": "center", "va": "center", "fontsize": 8}
                axes.text(x + 0.5, y + 0.5, f"{share:.0%}", color=shade, **place)
    columns, rows = _labelled(len(lengths)), _labelled(len(depths))
    axes.set_xticks([i + 0.5 for i in columns], [_short(lengths[i]) for i in columns])
    axes.set_yticks([i + 0.5 for i in rows], [f"{depths[i]:g}" for i in rows])
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("depth of the needle (%)")
    axes.set_title(f"{report.model}: single needle, {report.score().accuracy:.0%}", fontsize=10)
    figure.colorbar(image, label="accuracy")
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _labelled(count: int) -> range:
    """Returns the numbers of the ticks that get a label."""
    return range(0, count, -(-count // _MOST_LABELS))


def _short(length: int) -> str:
    """Writes multiples of 1024 and 1024² as K and M."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if length % unit == 0:
            return f"{length // unit}{name}"
    return f"{length:,}"
