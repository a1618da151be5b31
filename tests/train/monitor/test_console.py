"""What is shown of a run, on a terminal and elsewhere, and the rates in it."""

import io
import itertools
import re

import jax
import pytest
from rich.console import Console

from lwm.plan.flops import training_flops
from lwm.train.monitor.console import WINDOW, ConsoleSink, Rates, duration, total_peak


def update(step, **changes):
    line = {"step": step, "loss": 4 - step / 100, "tokens": 1000, "pairs": 5e5, "packing": 0.976}
    return line | {"seconds": 0.5, "finite": True, "memory": 1.44e9} | changes


@pytest.fixture
def show(tiny):
    """Lets a watch see lines, each a second after the one before; returns what was printed."""

    def make(lines, steps, *, interval=1.0, **console):
        out = io.StringIO()
        now = itertools.count()
        ticks = {"now": 0.0}
        with ConsoleSink(
            steps,
            tiny(),
            jax.devices()[:1],
            console=Console(file=out, **console),
            clock=lambda: ticks["now"],
        ) as watch:
            for line in lines:
                ticks["now"] = next(now) * interval
                watch(line)
        return out.getvalue()

    return make


def steps_of(printed):
    return [int(line.removeprefix("step ").split("/")[0]) for line in printed.splitlines()]


def test_plain_lines_now_and_then(show):
    lines = [update(step) for step in range(1, 1001)]
    assert steps_of(show(lines[:25], 1000)) == [1, 11, 21, 25], "10 seconds, and where it stopped"
    assert steps_of(show(lines, 1000, interval=0.01)) == [1, *range(50, 1001, 50)], "each 5%"
    assert steps_of(show(lines[:3], 3, interval=0.01)) == [1, 2, 3]


def test_a_plain_line(show):
    printed = show([update(1, seconds=60.0), *map(update, range(2, 5))], 1000)
    first, last = printed.splitlines()
    assert first == "step 1/1000  loss 3.990  1.4 GB  packing 98%"
    # Steps of half a second come once in a second, and 996 are left.
    found = re.fullmatch(
        r"step 4/1000  loss 3\.960  2,000 tokens/s  MFU (\S+)%  1\.4 GB  packing 98%  17 min left",
        last,
    )
    assert found, last
    assert float(found[1]) >= 0


def test_validation_and_skipped_updates_are_told(show):
    positions = [[0, 10, 3.52, 90], [10, 20, None, 0], [20, 40, 2.78, 90]]
    held_out = {
        "books": {"text_loss": 2.912, "vision_loss": None, "by_position": positions},
        "film [1]": {"text_loss": 2.0, "vision_loss": 5.1, "tokens": 3, "by_position": []},
        "none": {"text_loss": None, "vision_loss": None},
    }
    names = [f"books.jsonl:{n}" for n in range(5)]
    bad = update(2, loss=float("nan"), finite=False, examples=names)
    printed = show([update(1), bad, {"step": 2, "held_out": held_out}], 9, width=40).splitlines()
    assert printed[1:] == [
        "the update of step 2 is skipped: not finite "
        "(examples books.jsonl:0, books.jsonl:1, books.jsonl:2 and 2 more)",
        printed[2],
        "step 2  held-out books: loss 2.91 (text), by position 3.5 → 2.8",
        "step 2  held-out film [1]: loss 2.00 (text), 5.10 (vision)",
        "step 2  held-out none: no tokens",
    ]
    assert printed[2].startswith("step 2/9  loss nan  2,000 tokens/s")


def live(printed):
    """Returns the states of the live line, without the codes that move the cursor."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]", printed)]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (120, r"step 3/9  loss 3\.970  2,000 tokens/s  MFU \S+%  1\.4 GB  packing 98%  6 s left"),
        (75, r"step 3/9  loss 3\.970  2,000 tokens/s  6 s left|.*MFU [\d.]+%  6 s left"),
        (50, r"step 3/9  loss 3\.970"),
    ],
)
def test_one_live_line_fits_the_terminal(show, width, shown):
    lines = [*map(update, (1, 2, 3)), update(4, finite=False)]
    printed = show(lines[:3], 9, force_terminal=True, width=width)
    last = [line for line in live(printed) if line.strip()][-1]
    assert len(last) <= width
    assert re.search(rf"━ ({shown})\s*$", last), last
    assert printed.count("\x1b[?25l") == printed.count("\x1b[?25h") == 1, "the cursor comes back"
    above = live(show(lines, 9, force_terminal=True, width=width))
    assert "the update of step 4 is skipped: not finite" in above


def test_rates_leave_out_the_first_step_and_forget(tiny):
    rates = Rates(tiny(), peak=1e9)
    rates.add(update(1, seconds=100.0), 100.0)
    assert rates.of("tokens") is None
    assert rates.step is None
    assert rates.utilization is None
    rates.add(update(2, seconds=2.0), 102.0)
    assert rates.of("tokens") == 500
    assert rates.step == 2
    for step in range(WINDOW):
        rates.add(update(3 + step, seconds=1.0), 103.0 + step)
    assert rates.of("tokens") == 1000
    one = training_flops(tiny(), tokens=1000, pairs=5e5)
    assert rates.utilization == pytest.approx(one / 1e9)
    # Time spent on validation is expected again: half a minute in 52 seconds of steps.
    rates.add(update(99, seconds=1.0), 103.0 + WINDOW + 30)
    assert rates.step == pytest.approx((53 + 30) / 53)
    assert rates.exact
    line = update(100)
    del line["pairs"]
    rates.add(line, 200.0)
    assert not rates.exact


def test_the_peaks_of_devices_add_up():
    one, two = (total_peak(jax.devices()[:n], "float32") for n in (1, 2))
    assert one is not None
    assert two == 2 * one


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.4, "3 s"),
        (59.7, "1 min"),
        (720.0, "12 min"),
        (3 * 3600 + 720.0, "3 h 12 min"),
        (52 * 3600.0, "2 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
