"""Tables of `packing.py`: both ways of packing by split, kind of question and seed."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from lwm.eval.markdown import markdown_table
from lwm.eval.statistics import Difference, paired_difference
from lwm.world.language import QuestionAnswer, guessing

Way = Literal["masked", "naive"]
WAYS: tuple[Way, ...] = ("naive", "masked")
Found = Mapping[tuple[Way, int], dict[str, Any]]
"""Results of the runs by way of packing and seed."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """One measure of some questions: means of both ways, and their difference, masked - naive."""

    naive: float
    masked: float
    questions: Difference
    """Over questions; of each, the mean over seeds."""
    seeds: tuple[float, float] | None
    """95% interval over seeds, by Student's t; None of a single seed."""

    @classmethod
    def of(cls, values: dict[Way, Float[np.ndarray, "seeds questions"]]) -> "Compared":
        """Compares the ways; entries are by seed and question."""
        first, second = values["naive"], values["masked"]
        by_seed = (second - first).mean(1)
        interval = None
        if len(by_seed) > 1:
            reach = stats.t.ppf(0.975, len(by_seed) - 1) * stats.sem(by_seed)
            interval = float(by_seed.mean() - reach), float(by_seed.mean() + reach)
        paired = paired_difference(first.mean(0).tolist(), second.mean(0).tolist())
        return cls(float(first.mean()), float(second.mean()), paired, interval)

    def cells(self, form: str) -> list[str]:
        """Returns the cells of a table: both means, their difference, and both intervals."""

        def interval(bounds: tuple[float, float] | None) -> str:
            return "–" if bounds is None else " to ".join(f"{x:+{form}}" for x in bounds)

        means = f"{self.naive:{form}}", f"{self.masked:{form}}"
        gain = f"{self.questions.mean:+{form}}"
        return [*means, gain, interval(self.questions.interval), interval(self.seeds)]


def tables(found: Found) -> list[str]:
    """Returns the tables of all runs: by split and kind of question, and by seed."""
    seeds = sorted({seed for _, seed in found})
    every: list[dict[str, Any]] = found["masked", seeds[0]]["answers"]

    def values(way: Way, measure: str, numbers: Sequence[int]) -> Float[np.ndarray, "seeds Q"]:
        return np.array([[found[way, s]["answers"][n][measure] for n in numbers] for s in seeds])

    head = ["questions", "asked", "naive", "masked", "masked − naive"]
    head += ["95% over questions", "95% over seeds"]
    right, losses = [[*head, "prior"]], [head]
    for name, numbers in _parts(every):
        start = [name, f"{len(numbers):,}"]
        scores, nll = (
            Compared.of({way: values(way, measure, numbers) for way in WAYS})
            for measure in ("score", "loss")
        )
        asked = [every[number] for number in numbers]
        right.append([*start, *scores.cells(".1%"), f"{prior(asked):.1%}"])
        losses.append([*start, *nll.cells(".3f")])
    _, held_out = next(_parts(every))
    by_seed = [["seed", *(f"{way}, {what}" for what in ("right", "loss") for way in WAYS)]]
    for place, seed in enumerate(seeds):
        shares = [f"{values(way, 'score', held_out)[place].mean():.1%}" for way in WAYS]
        nlls = [f"{values(way, 'loss', held_out)[place].mean():.3f}" for way in WAYS]
        by_seed.append([str(seed), *shares, *nlls])
    lines = []
    for title, rows in (
        ("Share of right greedy answers", right),
        ("Loss on the right answers, nats per token", losses),
        ("Held-out combinations by seed", by_seed),
    ):
        lines += [f"{title}:", "", markdown_table(rows, words=True), ""]
    return lines[:-1]


def _parts(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[int]]]:
    """Yields parts of the questions, name and numbers; first all of the held-out split."""

    def where(**wanted: str) -> list[int]:
        return [n for n, row in enumerate(rows) if wanted.items() <= row.items()]

    yield "held-out combinations", where(split="heldout")
    for shown in ("pictures", "clips"):
        yield f"of these, {shown}", where(split="heldout", shown=shown)
    for kind in sorted({row["kind"] for row in rows}):
        if numbers := where(split="heldout", kind=kind):
            yield f"of these, {kind}", numbers
    yield "known combinations, new clips", where(split="train")


def prior(asked: Sequence[dict[str, Any]]) -> float:
    """Returns the share that the commonest answer to each kind of question is right for."""
    shares = guessing(QuestionAnswer(row["kind"], row["question"], row["answer"]) for row in asked)
    return float(np.mean([shares[row["kind"]] for row in asked]))
