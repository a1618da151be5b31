"""Collectives between processes; an error on one is raised on all."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lwm.errors import UserError


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, each of them fit for JSON."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array(data.size)).max())
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: data.size] = data
    return [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]


def agree_on(failure: Exception | None, numbers: list[int]) -> list[list[int]]:
    """Returns the numbers of all processes, or raises on all if one has failed.

    Raises:
        Exception: `failure`, on the process that has one.
        UserError: Another process has failed.
    """
    if jax.process_count() == 1:
        if failure is not None:
            raise failure
        return [numbers]
    own = np.array([int(failure is not None), *numbers])
    found = multihost_utils.process_allgather(own)
    if failure is not None:
        raise failure
    if failed := np.flatnonzero(found[:, 0]).tolist():
        raise UserError(f"process {failed[0]} has failed; see its message")
    return found[:, 1:].tolist()


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Runs a block on all processes; an error on one is raised on all.

    Raises:
        Exception: The error of this process.
        UserError: Another process has failed.
    """
    # The first collective of a run waits half a minute at most, so it comes before the work.
    agree_on(None, [])
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    agree_on(failure, [])


@contextlib.contextmanager
def first_alone() -> Iterator[bool]:
    """Yields whether this is process 0; the others wait until it leaves the block.

    Raises:
        Exception: See `all_or_none`.
    """
    with all_or_none():
        yield jax.process_index() == 0
