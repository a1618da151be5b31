"""Types and shapes are checked at each call of a test."""

from typing import Any

import beartype.roar
import jax.numpy as jnp
import jaxtyping
import pytest

from lwm.model.rope import rotate
from lwm.renamed import new_setting
from lwm.tokens import TokenSpace

WRONG = beartype.roar.BeartypeCallHintParamViolation


def test_types_of_functions_and_fields_are_checked():
    number: Any = 1
    text: Any = "256"
    assert new_setting("seed", ["seed"]) == "seed"
    with pytest.raises(WRONG):
        new_setting(number, ["seed"])
    with pytest.raises(WRONG):
        TokenSpace(text=text)
    # Its annotations name its own class, which is not there yet where it is decorated.
    with pytest.raises(jaxtyping.TypeCheckError):
        TokenSpace.of(text, 0)


def test_shapes_are_checked_with_each_other():
    x, angles = jnp.zeros((1, 4, 2, 6)), jnp.zeros((1, 4, 3))
    assert rotate(x, angles, angles).shape == x.shape
    for wrong in (jnp.zeros((1, 5, 3)), jnp.zeros((1, 4)), jnp.zeros((1, 4, 3), int)):
        with pytest.raises(jaxtyping.TypeCheckError):
            rotate(x, angles, wrong)
