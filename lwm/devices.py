"""What memory this machine's devices have free."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

_PROGRAM = 500_000_000
"""Bytes that a process itself takes on a host, to compile most of all: 0.4 to 0.5 GB measured with
a model of 30 layers, beyond its weights, cache and activations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The devices at hand."""

    count: int
    memory: int | None
    """Bytes free on each device, or on the host that all of them share; None: not known."""
    platform: str
    is_shared: bool = False
    """Whether the devices are threads of one processor, with one memory."""
    hosts: int = 1
    """Processes, each with devices of its own and, if shared, a memory of its own."""

    def room(self, used: int) -> int | None:
        """Returns the bytes that each of so many devices has, also of more than there are."""
        if self.memory is None or not self.is_shared:
            return self.memory
        return self.memory // math.ceil(used / self.hosts)

    def without(self, held: int, used: int) -> "Machine":
        """Returns the machine as if each of so many devices had given back these bytes."""
        if self.memory is None:
            return self
        parts = math.ceil(used / self.hosts) if self.is_shared else 1
        return dataclasses.replace(self, memory=self.memory + held * parts)


def machine(devices: Sequence[jax.Device] | None = None) -> Machine:
    """Asks the devices what they have free: all there are, unless some are given."""
    devices = list(jax.devices() if devices is None else devices)
    platform, hosts = devices[0].platform, len({device.process_index for device in devices})
    if platform == "cpu":
        free = host_memory()
        return Machine(
            count=len(devices),
            memory=None if free is None else max(0, free - _PROGRAM),
            platform=platform,
            is_shared=True,
            hosts=hosts,
        )
    # Those of other processes cannot be asked.
    own = [device for device in devices if device.process_index == jax.process_index()]
    said = [free_bytes(device.memory_stats()) for device in own]
    known = [bytes_free for bytes_free in said if bytes_free is not None]
    memory = min(known) if len(known) == len(own) > 0 else None
    return Machine(count=len(devices), memory=memory, platform=platform, hosts=hosts)


def free_bytes(stats: Mapping[str, int] | None) -> int | None:
    """Reads what a device says of its memory; None if it does not say enough."""
    if not stats or "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def host_memory(root: Path = Path("/")) -> int | None:
    """Returns the bytes that a process may still take: free memory, bounded by its cgroups.

    Args:
        root: Where `proc` and `sys` are.

    Returns:
        None if the machine does not say, as where it is no Linux.
    """
    free = _numbers(root / "proc/meminfo").get("MemAvailable")
    if free is None:
        return None
    return max(0, min([free * 1024, *_cgroup_rooms(root)]))


def _cgroup_rooms(root: Path) -> list[int]:
    """Returns what each limit on the way up from the process's own cgroup leaves."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    rooms = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # In a container the path may be one of the host's, which is not to be seen.
        own = Path(path.strip("/"))
        rooms += [_room(base / part, *names) for part in (own, *own.parents)]
    return [room for room in rooms if room is not None]


def _room(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    try:
        most = int((folder / limit).read_text())
        used = int((folder / usage).read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
    # Pages of files are given up when memory is wanted.
    return most - used + _numbers(folder / "memory.stat").get(cached, 0)


def _numbers(file: Path) -> dict[str, int]:
    """Reads lines of a name and a number."""
    try:
        rows = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
