"""Free memory of the devices of this machine."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

_PROGRAM = 500_000_000
"""Bytes of host memory that a process itself needs, mostly to compile: 0.4 to 0.5 GB measured with
a model of 30 layers, besides its weights, cache and activations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices of this machine, or of one to plan for."""

    count: int
    memory: int | None
    """Free bytes of each device, or of the host memory that all of them share; None: unknown."""
    platform: str
    is_shared: bool = False
    """True if the devices are threads of one processor with one memory."""
    hosts: int = 1
    """Number of processes, each with its own devices and, if shared, its own memory."""

    def room(self, used: int) -> int | None:
        """Returns the free bytes per device if `used` devices share the memory."""
        if self.memory is None or not self.is_shared:
            return self.memory
        return self.memory // math.ceil(used / self.hosts)

    def without(self, held: int, used: int) -> "Machine":
        """Returns the machine as if each of `used` devices had freed `held` bytes."""
        if self.memory is None:
            return self
        parts = math.ceil(used / self.hosts) if self.is_shared else 1
        return dataclasses.replace(self, memory=self.memory + held * parts)


def machine(devices: Sequence[jax.Device] | None = None) -> Machine:
    """Returns the number and free memory of the given devices, or of all devices."""
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
    # Devices of other processes do not report their memory.
    own = [device for device in devices if device.process_index == jax.process_index()]
    found = [free_bytes(device.memory_stats()) for device in own]
    known = [bytes_free for bytes_free in found if bytes_free is not None]
    memory = min(known) if len(known) == len(own) > 0 else None
    return Machine(count=len(devices), memory=memory, platform=platform, hosts=hosts)


def free_bytes(stats: Mapping[str, int] | None) -> int | None:
    """Returns the free bytes in a device's memory statistics; None if they are incomplete."""
    if not stats or "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def host_memory(root: Path = Path("/")) -> int | None:
    """Returns the bytes that a process can still allocate: free memory, limited by its cgroups.

    Args:
        root: Parent folder of `proc` and `sys`.

    Returns:
        None if unknown, as on other systems than Linux.
    """
    free = _numbers(root / "proc/meminfo").get("MemAvailable")
    if free is None:
        return None
    return max(0, min([free * 1024, *_cgroup_rooms(root)]))


def _cgroup_rooms(root: Path) -> list[int]:
    """Returns the free bytes of the process's own cgroup and of each of its parents."""
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
        # In a container the path may be one of the host, which is not visible.
        own = Path(path.strip("/"))
        rooms += [_room(base / part, *names) for part in (own, *own.parents)]
    return [room for room in rooms if room is not None]


def _room(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    try:
        most = int((folder / limit).read_text())
        used = int((folder / usage).read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
    # Cached pages of files are freed on demand.
    return most - used + _numbers(folder / "memory.stat").get(cached, 0)


def _numbers(file: Path) -> dict[str, int]:
    """Reads lines that hold a name and a number."""
    try:
        rows = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
