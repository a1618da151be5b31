"""The script that checks an accelerator, at toy sizes on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "gpu_check.py"


@pytest.mark.slow
@pytest.mark.representative
def test_the_check_of_a_device_passes_on_a_cpu(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--seconds", "900", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert '"failures": 0' in (tmp_path / "gpu_check.jsonl").read_text()
