"""What the processes of a run tell each other, so that none waits for one that has failed."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lwm.errors import UserError


def gather(value: Any) -> list[Any]:
    """Returns the value of each process; values are what JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array(data.size)).max())
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: data.size] = data
    return [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]


def agree_on(failure: Exception | None, numbers: list[int]) -> list[list[int]]:
    """Returns the numbers of each process, unless one of them has failed.

    Raises:
        Exception: This process has failed: `failure` itself.
        UserError: Another one has.
    """
    if jax.process_count() == 1:
        if failure is not None:
            raise failure
        return [numbers]
    told = np.array([int(failure is not None), *numbers])
    found = multihost_utils.process_allgather(told)
    if failure is not None:
        raise failure
    if failed := np.flatnonzero(found[:, 0]).tolist():
        raise UserError(f"process {failed[0]} has failed, and says why")
    return found[:, 1:].tolist()


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Goes on only where no process has failed.

    Raises:
        Exception: What this process has failed with.
        UserError: Another one has failed.
    """
    # Processes that have not met yet would wait for each other half a minute at most.
    agree_on(None, [])
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    agree_on(failure, [])


@contextlib.contextmanager
def first_alone() -> Iterator[bool]:
    """Says whether this is process 0, which writes what all share before others go on.

    Raises:
        Exception: See `all_or_none`.
    """
    with all_or_none():
        yield jax.process_index() == 0
