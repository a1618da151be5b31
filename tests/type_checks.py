"""Checks types in tests: with jaxtyping where shapes are annotated, else with beartype alone.

jaxtyping's wrapper binds all arguments and checks them twice at each call, which took half of the
time of tests that call many small functions.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping

_check_shapes = jaxtyping.jaxtyped


def _has_shape(hint: Any) -> bool:
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    return type(hint).__module__.startswith("jaxtyping.") or any(map(_has_shape, parts))


def _needs_shapes(function: Callable) -> bool:
    # beartype would check what a generator yields, and names that only type checkers import.
    if inspect.isgeneratorfunction(function):
        return True
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:
        return True
    return any(map(_has_shape, hints.values()))


def check_types(checked: Any = None, *, typechecker: Callable) -> Any:
    """Decorates a function or a class as `jaxtyping.jaxtyped` does, at less cost to each call.

    Args:
        checked: The function, or the class, whose `__init__` is checked if it is a dataclass; a
            decorator is returned if there is none.
        typechecker: A decorator that checks types.
    """
    if checked is None:
        return functools.partial(check_types, typechecker=typechecker)
    if inspect.isclass(checked):
        if dataclasses.is_dataclass(checked) and "__init__" in vars(checked):
            checked.__init__ = check_types(checked.__init__, typechecker=typechecker)
        return checked
    if inspect.isfunction(checked) and not _needs_shapes(checked):
        return typechecker(checked)
    return _check_shapes(checked, typechecker=typechecker)
