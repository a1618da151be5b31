"""Eight virtual devices, one compilation cache, and what many tests start from."""

import gc
import importlib
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Optimization takes most of the compile time, and pays off only where programs run for long.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_llvm_disable_expensive_passes=true "
    "--xla_backend_optimization_level=0"
)
if version("jaxlib").startswith("0.10."):  # later versions end at a flag that they do not know
    # Programs are split to be compiled on all cores, which takes an eighth longer in sum.
    os.environ["XLA_FLAGS"] += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
# Else each process, and each run, would compile all modules and rewrite all assertions again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
sys.path.insert(0, str(ROOT / "tests"))

import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from type_checks import check_types  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

# Before the first module of lwm is imported.
setattr(jaxtyping, "jaxtyped", check_types)  # noqa: B010  (type checkers know its overloads)

_COMPILING = (
    *("convert", "eval", "generate", "model", "ops", "serve", "train", "vqgan"),
    "test_smollm2.py",
)
"""Folders and files of tests that compile."""


def _compiles(nodeid: str) -> bool:
    return nodeid.split("::")[0].split("/")[1] in _COMPILING


def pytest_sessionstart(session: pytest.Session):
    """Makes the fixtures known where tests run, which is not where xdist hands them out."""
    plugins = session.config.pluginmanager
    if not plugins.hasplugin("dsession"):
        plugins.register(importlib.import_module("fixtures_of_all"))


class _ByFile(LoadScopeScheduling):
    """Gives all tests of a file that compiles to one worker, which compiles each program once."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0] if _compiles(nodeid) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Schedules by file; xdist's own groups have no effect with pytest 9.2."""
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files that compile first; the others, one by one, then fill the workers to the end."""
    items.sort(key=lambda item: not _compiles(item.nodeid))


def pytest_collection_finish() -> None:
    """Spares the collector of garbage what stays to the end: modules, and the tests themselves.

    Looking at all of it again and again took a twentieth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
