"""Progress of a run on a console: one live line on a terminal, else a plain line at intervals."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from lwm.data.example import MODALITIES
from lwm.model.config import Dtype, LlamaConfig
from lwm.plan.flops import peak_flops, training_flops
from lwm.text import printable

WINDOW = 50
"""Steps over which rates are averaged."""
INTERVAL = 10.0
"""Seconds between plain lines."""
SHARE = 0.05
"""Share of all steps after which a plain line is printed in any case."""

_BAR = 20
_MOST_NAMED = 3


class ConsoleSink:
    """Shows the lines of a run's log as they come.

    It shows tokens per second without padding; the model FLOPs utilization (`lwm.plan.flops`), if
    the devices' peak is known, with a `≥` and without attention if lines lack `pairs`; memory and
    packing; and the time left, with the share of validation and checkpoints as it was so far. Rates
    leave out the first step, which compiles.
    """

    def __init__(
        self,
        steps: int,
        config: LlamaConfig | None,
        devices: Sequence[jax.Device],
        *,
        dtype: Dtype = "float32",
        adapters: int = 0,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Prepares the display.

        Args:
            steps: Steps of the whole run, with those before it was resumed.
            config: The model, if it is a language model.
            devices: All devices of the run, with those of other processes.
            dtype: Type that the model is computed in.
            console: Where to print.
            clock: Returns the time in seconds.
        """
        self._rates = Rates(config, adapters=adapters)
        self._steps, self._devices, self._dtype = steps, devices, dtype
        self._console, self._clock = console, clock
        self._bar: Progress | None = None
        self._last: dict[str, Any] | None = None
        self._shown: tuple[float, int] | None = None
        """Time and step of the newest plain line."""

    def __enter__(self) -> "ConsoleSink":
        # Before the run, which would disturb the measurement of a CPU.
        if self._rates.config is not None:
            self._rates.peak = total_peak(self._devices, self._dtype)
        is_first = jax.process_index() == 0
        if is_first and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=_BAR),
                TextColumn("{task.description}", markup=False),
                console=self._console,
            )
            self._task = self._bar.add_task("compiling the first step", total=self._steps)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._last is not None and self._shown and self._shown[1] != self._last["step"]:
            self._print(self._text(self._last))

    def __call__(self, line: dict[str, Any]) -> None:
        """Shows one line of the log."""
        if "held_out" in line:
            for name, found in line["held_out"].items():
                self._print(f"step {line['step']}  held-out {name}: {describe_held_out(found)}")
            return
        self._last = line
        self._rates.add(line, self._clock())
        if not line["finite"]:
            self._print(describe_skipped(line))
        if self._bar is not None:
            text = self._text(line, width=self._console.width - _BAR - 4)
            self._bar.update(self._task, completed=line["step"], description=text)
        elif self._due(line["step"]):
            self._shown = self._clock(), line["step"]
            self._print(self._text(line))

    def _due(self, step: int) -> bool:
        if self._shown is None or step == self._steps:
            return True
        when, last = self._shown
        part = max(1.0, SHARE * self._steps)
        return self._clock() - when >= INTERVAL or step // part > last // part

    def busy(self, text: str) -> None:
        """Shows what goes on between updates, on the live line."""
        if self._bar is not None:
            step = "" if self._last is None else f"step {self._last['step']}/{self._steps}  "
            self._bar.update(self._task, description=f"{step}{text} …")

    def warn(self, text: str) -> None:
        """Prints a warning, above the live line; processes but the first add their number."""
        index = jax.process_index()
        self._print(f"process {index}: {text}" if index else text)

    def _print(self, text: str) -> None:
        print_line(self._console, text)

    def _text(self, line: dict[str, Any], width: int | None = None) -> str:
        """Returns the line of an update; parts of least importance give way in `width` columns."""
        rates, left = self._rates, self._steps - line["step"]
        # The part with the highest number gives way first.
        parts = [(0, f"step {line['step']}/{self._steps}"), (0, f"loss {line['loss']:.3f}")]
        for what in ("tokens", "frames"):
            if what in line and (rate := rates.of(what)) is not None:
                parts.append((1, f"{rate:,.0f} {what}/s"))
        if "psnr" in line:
            parts.append((1, f"PSNR {line['psnr']:.1f} dB"))
        if (share := rates.utilization) is not None:
            parts.append(
                (3, f"MFU {'' if rates.exact else '≥'}{share:.{0 if share >= 0.1 else 1}%}")
            )
        if memory := line.get("memory"):
            parts.append((4, f"{memory / 1e9:.1f} GB"))
        if "packing" in line:
            parts.append((5, f"packing {line['packing']:.0%}"))
        if rates.step is not None and left:
            parts.append((2, f"{duration(rates.step * left)} left"))
        while width is not None and len(_joined(parts)) > width and max(parts)[0]:
            parts.remove(max(parts))
        return _joined(parts)


@dataclasses.dataclass
class Rates:
    """Speed of a run over its newest steps."""

    config: LlamaConfig | None
    peak: float | None = None
    """FLOP/s of all devices."""
    adapters: int = 0
    """Weights of the adapters, if they are trained alone."""

    def __post_init__(self):
        self._window: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self._begun: float | None = None
        """Time at the end of the first step, which is left out."""
        self._inside = 0.0
        """Seconds in steps since then; the rest is validation and checkpoints."""
        self._outside = 1.0
        """Ratio of all time to time in steps."""

    def add(self, line: dict[str, Any], now: float) -> None:
        """Adds the line of an update that ended at `now`."""
        if self._begun is None:
            self._begun = now
            return
        self._window.append(line)
        self._inside += line["seconds"]
        if self._inside > 0:
            self._outside = max(1.0, (now - self._begun) / self._inside)

    def of(self, key: str) -> float | None:
        """Returns a count per second, such as `tokens`; None during the first step."""
        seconds = self._sum("seconds")
        return self._sum(key) / seconds if seconds else None

    @property
    def step(self) -> float | None:
        """Seconds from one step to the next, with validation and checkpoints between them."""
        return self._outside * self._sum("seconds") / len(self._window) if self._window else None

    @property
    def utilization(self) -> float | None:
        """Model FLOPs utilization, or a lower bound; None if the peak is not known."""
        seconds = self._sum("seconds")
        if not seconds or self.peak is None or self.config is None:
            return None
        tokens, pairs = int(self._sum("tokens")), self._sum("pairs")
        flops = training_flops(self.config, tokens=tokens, pairs=pairs, adapters=self.adapters)
        return flops / seconds / self.peak

    @property
    def exact(self) -> bool:
        """True if all lines count the pairs of attention, which an exact utilization needs."""
        return all("pairs" in line for line in self._window)

    def _sum(self, key: str) -> float:
        return float(sum(line.get(key, 0) for line in self._window))


def _joined(parts: list[tuple[int, str]]) -> str:
    return "  ".join(text for _, text in parts)


def print_line(console: Console, text: str) -> None:
    """Prints plain text, without markup and wrapping."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def total_peak(devices: Sequence[jax.Device], dtype: Dtype) -> float | None:
    """Returns the peak FLOP/s of all devices together, computing in a type."""
    total = 0.0
    for device in devices:
        peak = peak_flops(device, dtype)
        if peak is None:
            return None
        total += peak
    return total


def describe_held_out(found: dict[str, Any]) -> str:
    """Returns the scores of one held-out set in words, such as `loss 2.91 (text)`."""
    if "psnr" in found:
        seen = f"PSNR {found['psnr']:.2f} dB, {found['psnr_foreground']:.2f} in the foreground"
        return f"{seen}, {found['codes_used']:.0%} of the codes used"
    losses = [
        f"{found[f'{modality}_loss']:.2f} ({modality})"
        for modality in MODALITIES
        if found.get(f"{modality}_loss") is not None
    ]
    text = f"loss {', '.join(losses)}" if losses else "no tokens"
    along = [row[2] for row in found.get("by_position") or () if row[3]]
    if len(along) > 1:
        text += f", by position {along[0]:.1f} → {along[-1]:.1f}"
    return text


def describe_skipped(line: dict[str, Any]) -> str:
    """Returns a warning of a skipped update, with some of its examples."""
    examples = line.get("examples") or []
    named = ", ".join(examples[:_MOST_NAMED])
    if len(examples) > _MOST_NAMED:
        named += f" and {len(examples) - _MOST_NAMED} more"
    blamed = f" (examples {named})" if named else ""
    return f"the update of step {line['step']} is skipped: not finite{blamed}"


def duration(seconds: float) -> str:
    """Writes a time with its two largest units, such as `3 h 12 min`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
