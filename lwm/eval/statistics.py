"""Intervals and tests for scores from 0 to 1, also of small samples."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Z95 = 1.959963984540054
"""Two-sided 95% quantile of the standard normal distribution."""
_RESAMPLES = 10_000
_FEW = 20
"""Scores below which a bootstrap is too narrow."""
_EXACT = 12
"""Pairs that differ, up to which all signs are tried."""


def wilson(correct: int | float, asked: int, *, z: float = Z95) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion.

    E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference,
    Journal of the American Statistical Association 22 (1927), 209-212.
    """
    share, weight = correct / asked, z * z / asked
    middle = (share + weight / 2) / (1 + weight)
    reach = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    low = 0.0 if correct == 0 else middle - reach
    return low, 1.0 if correct == asked else middle + reach


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """Returns a 95% interval of the mean of scores from 0 to 1.

    Of scores that are all 0 or 1, and of few scores, it is Wilson's. Other scores have less
    variance at the same mean, so that it is too wide rather than too narrow; many of them are
    resampled (bootstrap, B. Efron, Annals of Statistics 7 (1979), 1-26).
    """
    values = np.asarray(scores, np.float64)
    distinct = set(values.tolist())
    if distinct <= {0.0, 1.0} or len(values) < _FEW or len(distinct) == 1:
        return wilson(float(values.sum()), len(values))
    return bootstrap_interval(values)


def average_interval(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Returns a 95% interval of the average of the means of groups, of which each counts as much.

    It joins the intervals of the groups, whose sizes may differ (G. Y. Zou, W. Huang and X. Zhang,
    Computational Statistics & Data Analysis 53 (2009), 1080-1085).
    """
    means = np.array([np.mean(group) for group in groups])
    low, high = np.array([mean_interval(group) for group in groups]).T
    average = means.mean()
    below, above = (np.linalg.norm(gap) / len(means) for gap in (means - low, high - means))
    return float(average - below), float(average + above)


def bootstrap_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Returns a 95% bootstrap interval of the mean of any numbers."""
    low, high = np.quantile(_resampled(np.asarray(values, np.float64)), [0.025, 0.975])
    return float(low), float(high)


def _resampled(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " R"]:
    generator = np.random.default_rng(0)  # equal scores give equal intervals
    counts = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), _RESAMPLES)
    return counts @ values / len(values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of two models on the same questions, second minus first."""

    pairs: int
    mean: float
    interval: tuple[float, float]
    """95% bootstrap interval of the mean over pairs."""
    p_value: float
    """Two-sided p-value of a sign-flip permutation test; exact for few pairs that differ."""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, rounded to six digits."""
        return {
            "pairs": self.pairs,
            "mean": round(self.mean, 6),
            "interval95": [round(bound, 6) for bound in self.interval],
            "p_value": round(self.p_value, 6),
        }


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compares scores of the same questions, in the same order.

    For right and wrong answers the test is McNemar's in its exact form: the signs of the pairs
    that differ are flipped in all ways, or in 10,000 random ones if there are too many.
    """
    gain = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    return Difference(
        pairs=len(gain),
        mean=float(gain.mean()),
        interval=bootstrap_interval(gain),
        p_value=_sign_flip(gain[gain != 0]),
    )


def _sign_flip(gain: Float[np.ndarray, " N"]) -> float:
    if not len(gain):
        return 1.0
    if len(gain) <= _EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(gain))[:, None] >> np.arange(len(gain)) & 1)
        extra = 0
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (_RESAMPLES, len(gain)))
        extra = 1  # the observed signs are one way, so that no p-value is 0
    sums = np.abs(signs @ gain)
    reached = int((sums >= abs(gain.sum()) - 1e-12).sum())
    return (reached + extra) / (len(signs) + extra)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for several tests (S. Holm, Scand. J. Statistics 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
