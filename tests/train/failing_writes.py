"""Saves a checkpoint again and again, with a disk that fails at the first write, the second, ...

LD_PRELOAD=failing_writes.so FAIL_IN=checkpoints python failing_writes.py FOLDER ERRNO
"""

import ctypes
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lwm.errors import UserError
from lwm.formats.run_folder import fault_of
from lwm.train.checkpoint import Checkpoints
from lwm.train.config import Keep

KEEP = Keep(last=2)
LIMIT = 5.0
"""Seconds in which a run ends after the fault."""


def main(folder: Path, error: int) -> None:
    disk = ctypes.CDLL(None)
    state: Any = {"bad": jnp.zeros((), jnp.int32), "weights": jnp.ones((8, 8))}
    with Checkpoints(folder / "whole" / "checkpoints", KEEP) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
    number = failed = 0
    while failed == number:
        number += 1
        run = shutil.copytree(folder / "whole", folder / str(number)) / "checkpoints"
        with Checkpoints(run, KEEP) as checkpoints:
            disk.fail_from(number, error)
            begun, line = time.monotonic(), None
            try:
                checkpoints.save(3, state, {})
                checkpoints.wait()
            except UserError as raised:
                failed, line = failed + 1, str(raised)
            finally:
                disk.fail_from(-1, 0)
        assert time.monotonic() - begun < LIMIT
        assert line is None or line.endswith("the checkpoint of step 2 is whole"), line
        left = [int(path.name) for path in run.iterdir()]
        assert sorted(left) == ([1, 2] if failed == number else [2, 3])
        assert not any(fault_of(run / str(step)) for step in left)
    print(failed)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(Path(sys.argv[1]), int(sys.argv[2]))
