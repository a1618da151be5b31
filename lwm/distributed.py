"""Several processes that run one program together."""

import dataclasses

from lwm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Which of several processes this one is; the same program is started once for each."""

    coordinator: str | None = None
    """Address of the first process, such as `10.0.0.1:1234`; `auto` asks the cluster (SLURM,
    Kubernetes, Open MPI, a TPU pod) for all three."""
    count: int | None = None
    """How many processes there are."""
    index: int | None = None
    """The number of this one, from 0."""


def join(processes: Processes) -> None:
    """Joins the others, before any device is used; alone if no coordinator is given.

    Raises:
        UserError: One of the three is missing or out of range, or the others cannot be reached.
    """
    coordinator, count, index = processes.coordinator, processes.count, processes.index
    if coordinator is None:
        if count is not None or index is not None:
            raise UserError("several processes need a coordinator: give its address, host:port")
        return
    if coordinator == "auto":
        _initialize("the cluster does not say which process this is", {})
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
    import jax  # Not before: a command line shows `Processes` at once.

    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{failure}: {str(error).splitlines()[0]}") from None
