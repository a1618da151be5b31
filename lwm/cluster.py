"""A Ray cluster: connections to it, its room, and errors of its actors."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from lwm.errors import UserError


@contextlib.contextmanager
def connected(ray: Any) -> Iterator[None]:
    """Connects to a cluster or starts one, unless the program has done so.

    The cluster is that which Ray is configured for, for instance by RAY_ADDRESS, else it is
    started on this machine, and ended.
    """
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def local_errors(ray: Any, died: str) -> Iterator[None]:
    """Raises errors of actors as local exceptions.

    Args:
        ray: The library.
        died: The message if actors died too often.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except ray.exceptions.RayActorError:
        raise UserError(died) from None


def require_room(there: Mapping[str, float], workers: int, needs: Mapping[str, float]) -> None:
    """Refuses more workers than fit: Ray would wait for them for ever.

    Args:
        there: Resources of the cluster.
        workers: Number of workers.
        needs: Resources of each.

    Raises:
        UserError: The number that fits.
    """
    counts = [int(there.get(name, 0) / need) for name, need in needs.items() if need > 0]
    most = min([workers, *counts])
    if most < workers:
        raise UserError(f"Ray has room for {most} workers, not for {workers}")
