"""The jobs that people have, each done by the commands that docs/jobs.md shows."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOURNEYS = sorted((ROOT / "tests" / "journeys").glob("*.sh"))


@pytest.mark.slow
@pytest.mark.network
def test_the_jobs_are_done(tmp_path):
    assert len(JOURNEYS) == 7
    with ThreadPoolExecutor(2) as threads:
        done = threads.map(lambda script: run_job(script, tmp_path / script.stem), JOURNEYS)
        failed = {script.stem: job for script, job in zip(JOURNEYS, done, strict=True) if job}
    assert not failed


def run_job(script: Path, folder: Path) -> str:
    """Returns the errors of a job that failed."""
    folder.mkdir()
    (folder / "lwm").symlink_to(ROOT / "lwm")
    # As somebody has it who has just installed: one device, and `lwm` on the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", str(script)],
        cwd=folder,
        env=environment | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    failed = done.returncode != 0 or "Traceback" in done.stderr
    return f"status {done.returncode}: {done.stderr[-4000:]}" if failed else ""
