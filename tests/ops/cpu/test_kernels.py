"""The kernels as plain C++, without XLA, for several processors and under sanitizers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lwm.ops.cpu.build import SOURCES

DRIVER = Path(__file__).parent / "driver.cc"


@pytest.mark.slow
@pytest.mark.parametrize(
    "builds",
    [
        pytest.param([("native", "address,undefined")], marks=pytest.mark.representative),
        [
            ("native", "thread"),
            ("x86-64-v3", "address,undefined"),
            # Vectors of the compiler alone, as on any other processor.
            ("x86-64", "address,undefined"),
        ],
    ],
    ids=["here", "others"],
)
def test_results_are_those_of_plain_loops_and_sanitizers_find_nothing(tmp_path, builds):
    for arch, sanitizers in builds:
        program = tmp_path / f"{arch}-{sanitizers}"
        flags = f"-O1 -g -march={arch} -std=c++17 -pthread -w -fno-sanitize-recover=all".split()
        build = ["g++", *flags, f"-fsanitize={sanitizers}", f"-I{SOURCES}", DRIVER, "-o", program]
        subprocess.run(build, check=True)
        done = subprocess.run([program], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "equal\n", ""), program


@pytest.mark.slow
def test_engine_and_pages_are_right_without_kernels():
    root = Path(__file__).parents[3]
    files = ["generate/test_engine.py", "generate/test_engine_exact.py", "model/test_pool.py"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        *(f"tests/{file}" for file in files),
    ]
    done = subprocess.run(command, cwd=root, env=os.environ | {"LWM_CPU_KERNELS": "0"})
    assert done.returncode == 0
