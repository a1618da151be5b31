"""Facts of the software and the machine, for reports."""

import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lwm


def versions() -> dict[str, str]:
    """Returns the versions of the programs that decide results."""
    return {
        "lwm": lwm.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def devices() -> str:
    """Returns number, kind and platform of the devices of this process."""
    there = jax.devices()
    kinds = sorted({device.device_kind for device in there})
    return f"{len(there)} x {', '.join(kinds)} ({there[0].platform})"


def machine(elsewhere: str | None = None) -> dict[str, Any]:
    """Returns devices, cores and memory of this machine.

    Args:
        elsewhere: The devices, if they are not of this process; it then begins to use none.
    """
    stats = None if elsewhere else jax.devices()[0].memory_stats()
    memory = (stats or {}).get("bytes_limit")
    return {
        "devices": elsewhere or devices(),
        **({} if memory is None else {"device_memory": memory}),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(terse=True),
    }


def _processor() -> str:
    """Returns the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
