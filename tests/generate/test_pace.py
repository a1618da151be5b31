import pytest

from lwm.generate.decoding import BURST
from lwm.generate.pace import Pace


def bursts(pace, costs):
    """Notes a burst for each (seconds of a step, seconds besides), and returns their steps."""
    steps = []
    for step, besides in costs:
        steps.append(pace.steps())
        pace.note(steps[-1], steps[-1] * step + besides)
    return steps


@pytest.mark.parametrize(("step", "steps"), [(0.5, 1), (0.03, 3), (0.001, BURST)])
def test_a_burst_takes_a_tenth_of_a_second_after_a_first_one_that_compiles(step, steps):
    costs = [(step, 5.0), *[(step, 0.0)] * 9]
    assert bursts(Pace(), costs)[-3:] == pytest.approx([steps] * 3, abs=1)


def test_a_burst_that_compiles_in_the_middle_of_an_answer_does_not_shorten_those_after_it():
    pace = Pace()
    before = bursts(pace, [(0.01, 0.0)] * 9)[-1]
    bursts(pace, [(0.01, 5.0)])
    assert bursts(pace, [(0.01, 0.0)] * 9)[-1] == pytest.approx(before, abs=1)


def test_a_burst_is_long_against_what_each_one_costs_besides():
    steps = bursts(Pace(), [(0.1, 0.4)] * 9)[-1]
    assert steps * 0.1 >= 2 * 0.4
