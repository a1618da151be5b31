"""Perplexity by position and by context, with intervals over segments, as JSON, table and curve."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lwm.eval.figures import Series, curve
from lwm.eval.markdown import markdown_table
from lwm.eval.results import ResultRow
from lwm.eval.statistics import Difference, bootstrap_interval, holm, paired_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNIFICANT = 0.05
"""Largest p-value, adjusted for the number of windows, of a difference that counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """Mean loss of some tokens of every segment."""

    tokens: int
    by_segment: Sequence[float]
    """Negative log-likelihoods in nats, the mean over the tokens of each segment."""

    @property
    def nll(self) -> float:
        """The mean over segments, which all have equally many of these tokens."""
        return float(np.mean(self.by_segment))

    @property
    def interval(self) -> tuple[float, float] | None:
        """A 95% bootstrap interval over segments; None for one segment."""
        return bootstrap_interval(self.by_segment) if len(self.by_segment) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Returns loss and perplexity, rounded to six digits, with their intervals."""
        ends = self.interval
        return {
            "asked": self.tokens,
            "nll": round(self.nll, 6),
            "nll_interval95": None if ends is None else [round(end, 6) for end in ends],
            "perplexity": _perplexity(self.nll),
            "interval95": None if ends is None else [_perplexity(end) for end in ends],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerplexityReport:
    """Losses of one measurement, in any order."""

    header: ResultRow
    """Model, configuration and versions: the first line of the results."""
    rows: Sequence[ResultRow]

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.header["model"]["name"]

    @property
    def length(self) -> int:
        """Tokens of a segment."""
        return self.header["config"]["length"]

    @functools.cached_property
    def contexts(self) -> dict[int, Loss]:
        """Losses of the last tokens of each segment by the tokens before them, at most.

        The last of them is the length of a segment: the whole context.
        """
        found = {}
        for context in sorted({row["context"] for row in self.rows}):
            rows = self._rows(context)
            found[context] = _loss((row["targets_nll"], row["targets"]) for row in rows)
        return found

    @functools.cached_property
    def positions(self) -> dict[tuple[int, int], Loss]:
        """Losses in the whole context by the tokens before the target: from, and less than."""
        whole = [row["by_position"] for row in self._rows(self.length)]
        return {
            (cells[0][0], cells[0][1]): _loss((cell[2], cell[3]) for cell in cells)
            for cells in zip(*whole, strict=True)
        }

    @property
    def overall(self) -> Loss:
        """The loss of all tokens in the whole context."""
        whole = self._rows(self.length)
        return _loss(
            (math.fsum(cell[2] for cell in row["by_position"]), self.length - 1) for row in whole
        )

    @functools.cached_property
    def differences(self) -> dict[int, tuple[Difference, float]]:
        """Loss in each window minus that of the same tokens in the whole context.

        The second value is the p-value adjusted for several windows (Holm).
        """
        *windows, _ = self.contexts
        whole = self.contexts[self.length].by_segment
        found = {c: paired_difference(whole, self.contexts[c].by_segment) for c in windows}
        adjusted = holm([each.p_value for each in found.values()])
        return {c: (each, p) for (c, each), p in zip(found.items(), adjusted, strict=True)}

    @property
    def used(self) -> int:
        """The largest window whose loss is significantly above that of the whole context.

        So the model is shown to use more tokens than that; 0 if no window is significant.
        """
        worse = (
            context
            for context, (difference, p_value) in self.differences.items()
            if difference.mean > 0 and p_value < SIGNIFICANT
        )
        return max(worse, default=0)

    @property
    def enough(self) -> int:
        """The smallest context above `used`: no significant gain was found beyond it."""
        return min(context for context in self.contexts if context > self.used)

    def to_json(self) -> str:
        """Returns the report; equal results give equal text."""
        positions = [
            {"position": first, "position_end": end} | loss.to_json()
            for (first, end), loss in self.positions.items()
        ]
        contexts = []
        for context, loss in self.contexts.items():
            cell = {"context": context} | loss.to_json()
            if context in self.differences:
                difference, p_value = self.differences[context]
                cell["above_whole"] = difference.to_json() | {"p_value_holm": round(p_value, 6)}
            contexts.append(cell)
        whole = dict(self.header) | {
            "axes": ["position"],
            "overall": self.overall.to_json() | {"segments": len(self._rows(self.length))},
            "cells": positions,
            "contexts": {"axes": ["context"], "cells": contexts},
            "effective_context": {"more_than": self.used, "enough": self.enough},
        }
        return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"

    def table(self) -> str:
        """Returns both curves in Markdown, with 95% intervals over segments."""
        rows = [["tokens before", "tokens scored", "perplexity", "95% interval"]]
        rows += [
            [f"{first:,} to {end - 1:,}", *_cells(loss)]
            for (first, end), loss in self.positions.items()
        ]
        rows.append(["all", *_cells(self.overall)])
        header = ["context at most", "tokens scored", "perplexity", "95% interval", "extra loss"]
        limited = [[*header, "p (Holm)"]]
        for context, loss in self.contexts.items():
            extra = ["", ""]
            if context in self.differences:
                difference, p_value = self.differences[context]
                low, high = difference.interval
                extra = [f"{difference.mean:+.3f} ({low:+.3f} to {high:+.3f})", f"{p_value:.3f}"]
            limited.append([f"{context:,}", *_cells(loss), *extra])
        if not self.differences:
            return markdown_table(rows)
        return f"{markdown_table(rows)}\n\n{markdown_table(limited)}\n\n{self.summary}"

    @property
    def summary(self) -> str:
        """Returns the effective context in one sentence."""
        if not self.used:
            segments = len(self._rows(self.length))
            return f"No window is significantly worse than the whole context ({segments} segments)."
        if self.enough == self.length:
            return f"The model uses more than {self.used:,} tokens of context."
        return (
            f"The model uses more than {self.used:,} tokens of context; above {self.enough:,} no "
            "significant gain was found."
        )

    def figure(self) -> "Figure":
        """Plots the loss by position, and of the last tokens by the context they are given."""
        lines = [_series("by position", [a for a, _ in self.positions], self.positions.values())]
        if self.differences:
            name = f"last {self.header['config']['targets']:,} tokens,\ncontext limited"
            lines.append(_series(name, list(self.contexts), self.contexts.values()))
        return curve(
            lines,
            title=f"{self.model}: perplexity {_perplexity(self.overall.nll):.4g}",
            y_label="loss (nats per token)",
            x_label="tokens of context",
            limits=None,
        )

    def _rows(self, context: int) -> list[ResultRow]:
        """Returns the rows of a context, in the order of segments."""
        rows = (row for row in self.rows if row["context"] == context)
        return sorted(rows, key=lambda row: (row["document"], row["segment"]))


def _loss(sums: Iterable[tuple[float, int]]) -> Loss:
    pairs = list(sums)
    return Loss(
        tokens=sum(count for _, count in pairs), by_segment=[nll / count for nll, count in pairs]
    )


def _perplexity(nll: float) -> float:
    # The exponential of a loss of more than 700 nats is infinite, which JSON has no number for.
    return float(f"{math.exp(min(nll, 700)):.6g}")


def _series(name: str, xs: Sequence[int], losses: Iterable[Loss]) -> Series:
    found = list(losses)
    ends = [loss.interval for loss in found]
    low = [end[0] for end in ends if end is not None]
    high = [end[1] for end in ends if end is not None]
    return Series(name=name, xs=xs, ys=[loss.nll for loss in found], low=low, high=high)


def _cells(loss: Loss) -> list[str]:
    ends = loss.interval
    interval = "" if ends is None else f"{math.exp(ends[0]):.2f} to {math.exp(ends[1]):.2f}"
    return [f"{loss.tokens:,}", f"{math.exp(loss.nll):.2f}", interval]
