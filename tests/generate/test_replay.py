"""Calls between processes: what a plan holds arrives, and nothing that could run a command."""

import io
import os
import pickle
from array import array

import numpy as np
import pytest

from lwm.generate.pages import Holding
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.replay import _Unpickler
from lwm.generate.sampling import GREEDY, MinP, RepetitionPenalty, Sampler, Temperature, TopK, TopP


def sent(value):
    return _Unpickler(io.BytesIO(pickle.dumps(value, protocol=5))).load()


def test_plans_and_arrays_arrive():
    rules = RepetitionPenalty(1.5), Temperature(0.5), TopK(3), TopP(0.9), MinP(0.1)
    vision = VisionPlan(state=None, image=Sampler(rules=rules), video=GREEDY, guidance=2.0)
    plan = GenerationPlan(
        max_tokens=3, stop_ids={1, 2}, sampler=Sampler(), logit_bias={3: 0.5}, vision=vision
    )
    assert sent(plan) == plan
    assert sent(GenerationPlan(max_tokens=3, stop_ids=range(4))).stop_ids == range(4)
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2]
    name, (found, one) = sent(("read", (ids, np.bool_(True))))
    assert name == "read"
    np.testing.assert_array_equal(found, ids)
    assert one
    assert sent(array("i", [5, -1])) == array("i", [5, -1])
    holding = Holding(3)
    holding.pages += [1, 5]
    assert vars(sent(holding)) == vars(holding)


class Command:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("value", [Command(), os.path.join, np.load, io.BytesIO])
def test_nothing_else_arrives(value):
    with pytest.raises(pickle.UnpicklingError, match="is no part of a call"):
        sent(value)
