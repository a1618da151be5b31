"""What a person sees of a run: one live line on a terminal, else a plain line now and then."""

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

WINDOW = 50
"""Steps that the rates are the mean of."""
OFTEN = 10.0
"""Seconds between plain lines."""
SHARE = 0.05
"""Of all steps, after which there is a plain line in any case."""

_BAR = 20
_MOST_NAMED = 3


class ConsoleSink:
    """Shows the lines of a run's log as they come; the first step told is in no rate.

    The first step is the one that waits for the compiler. What is shown is tokens a second, empty
    slots left out; the model FLOPs utilization (`lwm.plan.flops`), where the peak of the devices
    is known, and with a `≥`, attention left out, where lines do not tell their `pairs`; the memory
    and the packing of the line; and the time that is left, in which validation and checkpoints take
    the part that they took so far.
    """

    def __init__(
        self,
        steps: int,
        config: LlamaConfig | None,
        devices: Sequence[jax.Device],
        *,
        dtype: Dtype = "float32",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Prepares to watch.

        Args:
            steps: Of the whole run, those before it was resumed included.
            config: The language model; None of what has no tokens.
            devices: All that the run uses, those of other processes, too.
            dtype: Type that the model is computed in.
            console: Where to write; if not given, the stderr of the first process.
            clock: Tells the seconds.
        """
        self._rates = Rates(config)
        self._steps, self._devices, self._dtype = steps, devices, dtype
        self._console = console or Console(stderr=True, quiet=jax.process_index() != 0)
        self._clock = clock
        self._bar: Progress | None = None
        self._last: dict[str, Any] | None = None
        self._shown: tuple[float, int] | None = None
        """When the newest plain line was printed, and of which step."""

    def __enter__(self) -> "ConsoleSink":
        # Before the run, which would disturb the measuring of a processor.
        if self._rates.config is not None:
            self._rates.peak = total_peak(self._devices, self._dtype)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
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
            self.say(self._text(self._last))

    def __call__(self, line: dict[str, Any]) -> None:
        """Shows one line of the log."""
        if "held_out" in line:
            for name, found in line["held_out"].items():
                self.say(f"step {line['step']}  held-out {name}: {describe_held_out(found)}")
            return
        self._last = line
        self._rates.add(line, self._clock())
        if not line["finite"]:
            self.say(describe_skipped(line))
        if self._bar is not None:
            text = self._text(line, width=self._console.width - _BAR - 4)
            self._bar.update(self._task, completed=line["step"], description=text)
        elif self._due(line["step"]):
            self._shown = self._clock(), line["step"]
            self.say(self._text(line))

    def _due(self, step: int) -> bool:
        if self._shown is None or step == self._steps:
            return True
        when, last = self._shown
        part = max(1.0, SHARE * self._steps)
        return self._clock() - when >= OFTEN or step // part > last // part

    def say(self, text: str) -> None:
        """Prints a line, above the live one if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _text(self, line: dict[str, Any], width: int | None = None) -> str:
        """Describes an update; in `width` columns, the least important parts are left out."""
        rates, left = self._rates, self._steps - line["step"]
        # The higher the number, the sooner a part gives way.
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
    """How fast a run is, by its newest steps."""

    config: LlamaConfig | None
    peak: float | None = None
    """FLOP/s of all devices."""

    def __post_init__(self):
        self._window: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self._begun: float | None = None
        """When the first step, which is left out, was done."""
        self._inside = 0.0
        """Seconds in steps since then; the rest goes to validation and checkpoints."""
        self._outside = 1.0
        """How many times longer it all takes than the steps alone."""

    def add(self, line: dict[str, Any], now: float) -> None:
        """Takes the line of an update that was done at `now`."""
        if self._begun is None:
            self._begun = now
            return
        self._window.append(line)
        self._inside += line["seconds"]
        if self._inside > 0:
            self._outside = max(1.0, (now - self._begun) / self._inside)

    def of(self, what: str) -> float | None:
        """Returns how much of something goes through a second; None while there is one step."""
        seconds = self._sum("seconds")
        return self._sum(what) / seconds if seconds else None

    @property
    def step(self) -> float | None:
        """Seconds from one step to the next, what lies between them included."""
        return self._outside * self._sum("seconds") / len(self._window) if self._window else None

    @property
    def utilization(self) -> float | None:
        """The share of what the devices can do, at least; None where either is not known."""
        seconds = self._sum("seconds")
        if not seconds or self.peak is None or self.config is None:
            return None
        tokens, pairs = int(self._sum("tokens")), self._sum("pairs")
        return training_flops(self.config, tokens=tokens, pairs=pairs) / seconds / self.peak

    @property
    def exact(self) -> bool:
        """Whether the lines tell all that the utilization needs, the pairs that attention sees."""
        return all("pairs" in line for line in self._window)

    def _sum(self, key: str) -> float:
        return float(sum(line.get(key, 0) for line in self._window))


def _joined(parts: list[tuple[int, str]]) -> str:
    return "  ".join(text for _, text in parts)


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
    """Returns what a validation says of one held-out set, such as `loss 2.91 (text)`."""
    if "psnr" in found:
        seen = f"PSNR {found['psnr']:.2f} dB, {found['psnr_foreground']:.2f} of what is drawn"
        return f"{seen}, {found['codes_used']:.0%} of the codes used"
    losses = [
        f"{found[f'{modality}_loss']:.2f} ({modality})"
        for modality in MODALITIES
        if found.get(f"{modality}_loss") is not None
    ]
    text = f"loss {', '.join(losses)}" if losses else "no tokens"
    along = [loss for _, _, loss, tokens in found.get("by_position") or () if tokens]
    if len(along) > 1:
        text += f", by position {along[0]:.1f} → {along[-1]:.1f}"
    return text


def describe_skipped(line: dict[str, Any]) -> str:
    """Returns what is said of an update that was not made, with some of its examples."""
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
