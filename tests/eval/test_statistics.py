"""Intervals and tests of scores, beside SciPy's and by hand."""

import numpy as np
import pytest

from lwm.eval.statistics import average_interval, holm, mean_interval, paired_difference, wilson


def test_the_interval_of_right_and_wrong_is_wilsons():
    assert mean_interval([1.0, 1.0, 0.0, 1.0]) == wilson(3, 4)
    assert mean_interval([1.0] * 5) == wilson(5, 5)


def test_the_interval_of_few_parts_is_not_narrower_than_that_of_right_and_wrong():
    assert mean_interval([0.0, 0.5]) == wilson(0.5, 2)
    assert mean_interval([0.0, 0.5])[1] > 0.7


def test_the_interval_of_parts_is_narrower_than_wilsons_and_holds_the_mean():
    scores = [0.2, 0.4, 0.6, 0.8, 1.0] * 6
    low, high = mean_interval(scores)
    least, most = wilson(18, 30)
    assert least < low < np.mean(scores) < high < most
    assert mean_interval(scores) == (low, high)


def test_equal_parts_have_an_interval_of_more_than_a_point():
    low, high = mean_interval([0.5] * 10)
    assert low < 0.3
    assert high > 0.7


def test_the_interval_of_a_mean_holds_the_truth_about_as_often_as_said():
    generator, held = np.random.default_rng(1), 0
    for _ in range(200):
        low, high = mean_interval((generator.integers(0, 5, 25) / 4).tolist())
        held += low <= 0.5 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_a_difference_is_tested_as_mcnemar_does():
    first, second = [0.0] * 6 + [1.0] * 10, [1.0] * 16
    found = paired_difference(first, second)
    assert found.mean == 6 / 16
    assert found.p_value == 2 / 2**6  # a two-sided binomial test of six of six
    assert found.interval[0] > 0
    assert paired_difference(first, first).p_value == 1


def test_many_pairs_are_tested_by_random_signs():
    generator = np.random.default_rng(2)
    noise = generator.random(200)
    assert paired_difference(noise.tolist(), generator.permutation(noise).tolist()).p_value > 0.05
    assert paired_difference(noise.tolist(), (noise + 0.1).tolist()).p_value < 0.001


def test_holms_adjustment_is_that_of_its_paper():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_interval_of_an_average_is_about_the_average_of_groups_of_any_size():
    assert average_interval([[1.0, 0.0, 1.0]]) == pytest.approx(mean_interval([1.0, 0.0, 1.0]))
    generator, held = np.random.default_rng(0), 0
    for _ in range(400):
        # Groups with more questions are easier, as short texts are.
        groups = [
            (generator.random(size) < share).astype(float).tolist()
            for size, share in ((25, 0.9), (25, 0.6), (10, 0.1))
        ]
        low, high = average_interval(groups)
        average = np.mean([np.mean(group) for group in groups])
        assert low < average < high
        held += low <= (0.9 + 0.6 + 0.1) / 3 <= high
    assert 0.93 * 400 <= held <= 0.985 * 400
