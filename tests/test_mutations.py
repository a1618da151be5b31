"""Damaged files of nine kinds open, or are refused in one line: see `mutations.py`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_damaged_files_are_opened_or_refused_in_one_line(count):
    pytest.importorskip("av", reason="PyAV is not installed")
    script = Path(__file__).with_name("mutations.py")
    command = [sys.executable, str(script), "--count", str(count), "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 10  # a head, and a line for each kind
