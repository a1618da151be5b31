"""Start of a program on several processes."""

import dataclasses

from lwm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Number of this process among several; the same command is started once for each."""

    coordinator: str | None = None
    """Address of the first process, such as `10.0.0.1:1234`; `auto` takes all three from the
    cluster (SLURM, Kubernetes, Open MPI, a TPU pod)."""
    count: int | None = None
    """Number of processes."""
    index: int | None = None
    """Number of this process, from 0."""


def join(processes: Processes) -> None:
    """Joins the other processes, before any device is used; does nothing without a coordinator.

    Raises:
        UserError: One of the three is missing or out of range, or the others cannot be reached.
    """
    coordinator, count, index = processes.coordinator, processes.count, processes.index
    if coordinator is None:
        if count is not None or index is not None:
            raise UserError("several processes need a coordinator: give its address, host:port")
        return
    if coordinator == "auto":
        _initialize("the cluster does not number this process", {})
        return
    if count is None or index is None:
        raise UserError(f"coordinator {coordinator} is given without a count and an index")
    if not 0 <= index < count:
        raise UserError(f"process index {index} is not among {count} processes, 0 to {count - 1}")
    if not coordinator.rpartition(":")[2].isdigit() or ":" not in coordinator:
        raise UserError(f"coordinator {coordinator!r} has no port; write host:port")
    _initialize(
        f"process {index} could not join the others at {coordinator}",
        {"coordinator_address": coordinator, "num_processes": count, "process_id": index},
    )


def _initialize(failure: str, arguments: dict) -> None:
    import jax  # only now: help texts do not need it

    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{failure}: {str(error).splitlines()[0]}") from None
