"""The jobs that people have, each done by the commands that docs/jobs.md shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOURNEYS = sorted((ROOT / "tests" / "journeys").glob("*.sh"))


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("script", [pytest.param(path, id=path.stem) for path in JOURNEYS])
def test_a_job_is_done(script, tmp_path):
    (tmp_path / "lwm").symlink_to(ROOT / "lwm")
    # As somebody has it who has just installed: one device, and `lwm` on the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", str(script)],
        cwd=tmp_path,
        env=environment | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
