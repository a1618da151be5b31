"""Start of a program on several processes, and its end where one of them fails."""

import atexit
import dataclasses
import os
import sys
import traceback

from lwm.errors import UserError
from lwm.peers import Meeting, Peers, meet
from lwm.signals import end_now
from lwm.text import printable


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
    timeout: int = 300
    """Seconds to wait until all have joined, and later for one that does not answer."""


_peers: Peers | None = None


def join(processes: Processes) -> None:
    """Joins the other processes, before any device is used; does nothing without a coordinator.

    From then on this process ends, with a line on stderr, when another one ends too early or does
    not answer.

    Raises:
        UserError: One of the three is missing or out of range, or the others cannot be reached.
    """
    coordinator, count, index = processes.coordinator, processes.count, processes.index
    if processes.timeout < 1:
        raise UserError(f"a timeout of {processes.timeout} s is too short; give 1 or more")
    if coordinator is None:
        if count is not None or index is not None:
            raise UserError("several processes need a coordinator: give its address, host:port")
        return
    if coordinator == "auto":
        coordinator, count, index = _of_cluster(processes.timeout)
    if count is None or index is None:
        raise UserError(f"coordinator {coordinator} is given without a count and an index")
    if not 0 <= index < count:
        raise UserError(f"process index {index} is not among {count} processes, 0 to {count - 1}")
    if not coordinator.rpartition(":")[2].isdigit() or ":" not in coordinator:
        raise UserError(f"coordinator {coordinator!r} has no port; write host:port")
    _join(coordinator, count, index, float(processes.timeout))


def _of_cluster(timeout: int) -> tuple[str, int | None, int | None]:
    from jax._src.clusters import ClusterEnv  # JAX has no public function for it

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, timeout
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the cluster does not number this process: {reason}") from None
    coordinator, count, index, _ = found
    if coordinator is None:
        raise UserError(
            "the cluster does not number this process; give --processes.coordinator, .count and "
            ".index"
        )
    return coordinator, count, index


def _join(coordinator: str, count: int, index: int, timeout: float) -> None:
    global _peers
    import jax  # only now: help texts do not need it

    bind = None
    if index == 0:
        meeting = Meeting(coordinator, count, timeout)
        lines = meeting.wait()
        address = f"127.0.0.1:{meeting.service}"
        bind = f"[::]:{meeting.service}"
    else:
        line, address = meet(coordinator, index, count, timeout)
        lines = {0: line}
    peers = Peers(lines, timeout)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            # `Peers` notices all failures before JAX does, which would abort.
            initialization_timeout=int(timeout) + 60,
            heartbeat_timeout_seconds=int(timeout) + 60,
            coordinator_bind_address=bind,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"process {index} could not join the others at {coordinator}: {reason}"
        ) from None
    _peers = peers
    atexit.register(_leave)


def has_left(index: int) -> bool:
    """Returns whether another process has ended as it should."""
    return _peers is not None and _peers.has_left(index)


def explain() -> None:
    """Ends this process, with a line, if a program failed because another process is gone."""
    if _peers is not None:
        _peers.explain()


def end_alone(error: BaseException) -> None:
    """Ends a process that has failed, as Python would, but without waiting for the others.

    Does nothing without others. They end, too, when they see that this one has.
    """
    if _peers is None:
        return
    if isinstance(error, Exception) and not isinstance(error, UserError):
        _peers.explain()
    status = 1
    if isinstance(error, UserError):
        sys.stderr.write(printable(f"lwm: {error}") + "\n")
        status = 2
    elif isinstance(error, KeyboardInterrupt):
        status = 130
    elif isinstance(error, SystemExit) and isinstance(error.code, int):
        status = error.code
    else:
        traceback.print_exception(error)
    end_now(status)


def _leave() -> None:
    """Waits for the others at the end of the program, unless it has failed."""
    import jax

    if getattr(sys, "last_value", None) is not None:  # its traceback is printed
        end_now(1)
    jax.distributed.shutdown()
    if _peers is not None:
        _peers.leave()
