"""Help of a command: the common options; all of them with `--help-all`."""

import contextlib
import io
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

ALL = "--help-all"
_SHORT = ("-h", "--help")
_RARE = frozenset(
    f"--{name}"
    for name in (
        # How a model is loaded.
        *("template", "vqgan", "pool-tokens", "cache-dtype", "config", "theta", "rope-scaling"),
        *("codes", "stretch", "processes.coordinator", "processes.count", "processes.index"),
        "processes.timeout",
        # How a text and the codes of images are sampled.
        *("min-p", "repetition-penalty", "presence-penalty", "frequency-penalty", "logit-bias"),
        *("stop-ids", "ignore-eos", "min-tokens"),
        *(
            f"{kind}.{name}"
            for kind in ("image", "video")
            for name in ("guidance", "temperature", "top-k", "top-p")
        ),
        # How an evaluation asks.
        *("engine", "ray-workers", "ray-resources", "retries", "timeout", "api-key-env"),
        *("opening", "extra-body"),
        # Limits of a server.
        *("queue-tokens", "key-requests", "max-n", "body-bytes", "read-seconds", "write-seconds"),
        *("ping-seconds", "detached-seconds", "drain-seconds", "media-bytes", "media-seconds"),
        *("max-media-frames", "media-cache-bytes"),
    )
)
"""Options that the short help leaves out."""
_TRAINING = frozenset(
    f"--{name}"
    for name in (
        *("help", "init", "mesh", "seed", "out", "track", "plan", "sample"),
        *("compute.dtype", "compute.remat"),
        *("topology", "devices", "memory", "mfu", "programs", "only"),
        *("data.add", "data.sets.0.files", "data.held-out.0.files", "data.tokenizer", "data.vqgan"),
        *("data.rows", "data.batch", "data.packing.length", "training.steps"),
        *("training.accumulate", "training.validate-every", "training.keep.every", "lora.rank"),
        "training.optimizer.schedule.peak",
        "training.optimizer.schedule.warmup",
    )
)
"""The options of a recipe that the short help has."""
_WIDEST = 129
"""Columns of a terminal on which each box has lines of its own."""
_NAME = re.compile(r"│ (-[\w.-]+)(?:, (--[\w.-]+))?")
_STYLE = re.compile(r"\x1b\[[\d;]*m")


def with_short_help(
    arguments: Sequence[str],
    parse: Callable[[list[str]], None],
    *,
    command: str,
    is_recipe: bool = False,
) -> None:
    """Parses arguments; help that they ask for is shortened, unless it is asked for in full.

    Args:
        arguments: The arguments.
        parse: Parses them; prints the help and exits.
        command: The command, for the line that says how to see the rest.
        is_recipe: The options are the settings of a recipe.
    """
    given = list(arguments)
    options = given[: given.index("--")] if "--" in given else given
    is_full = ALL in options
    if is_full:
        given[given.index(ALL)] = "--help"
    elif not any(each in options for each in _SHORT):
        parse(given)
        return
    else:
        # Wider ones have several boxes on a line.
        os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, _WIDEST))
    named = itertools.takewhile(lambda each: not each.startswith("-"), options)
    out, screen = sys.stdout, _Screen(sys.stdout)
    try:
        with contextlib.redirect_stdout(screen):
            parse(given)
    finally:
        text, hidden = screen.text(), 0
        if not is_full:
            text, hidden = shortened(text, is_recipe=is_recipe)
        more = f"{hidden} more options: {' '.join([command, *named])} {ALL}\n"
        out.write(text + more * bool(hidden))


class _Screen(io.TextIOWrapper):
    """A text in place of a stream, with colours where that has them."""

    def __init__(self, stream: Any):
        # As tyro spells it: without UTF-8, boxes have no lines.
        super().__init__(io.BytesIO(), stream.encoding.lower(), "replace", newline="\n")
        self._stream = stream

    def isatty(self) -> bool:
        """Returns whether the stream is a terminal."""
        return self._stream.isatty()

    def text(self) -> str:
        """Returns what has been written."""
        self.seek(0)
        return self.read()


def shortened(text: str, *, is_recipe: bool) -> tuple[str, int]:
    """Returns help without the rare options, and the number of these.

    Args:
        text: Help in boxes, each with options one after the other.
        is_recipe: The options are the settings of a recipe, most of which are rare.
    """
    kept: list[str] = []
    hidden = 0
    box: list[str] = []
    for line in text.splitlines():
        plain = _STYLE.sub("", line)
        if plain.startswith("╭"):
            box = [line]
        elif plain.startswith("╰"):
            lines, left = _short_box([*box, line], is_recipe)
            kept += lines
            hidden += left
            box = []
        elif box:
            box.append(line)
        else:
            kept.append(line)
    return "\n".join([*kept, *box]) + "\n", hidden


def _short_box(box: Sequence[str], is_recipe: bool) -> tuple[list[str], int]:
    """Returns a box without its rare options, or nothing if it has no others."""
    lines: list[str] = []
    has_options = keeps = False
    shown = hidden = 0
    for line in box[1:-1]:
        if (found := _NAME.match(_STYLE.sub("", line))) is not None:
            has_options = True
            names = {name for name in found.groups() if name}
            keeps = bool(names & _TRAINING) if is_recipe else not names & _RARE
            shown, hidden = shown + keeps, hidden + (not keeps)
        if keeps or not has_options:
            lines.append(line)
    if has_options and not shown:
        return [], hidden
    return [box[0], *lines, box[-1]], hidden
