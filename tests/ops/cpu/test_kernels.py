"""The kernels as plain C++, without XLA, for several processors and under sanitizers."""

import subprocess
from pathlib import Path

import pytest

from lwm.ops.cpu.build import SOURCES

DRIVER = Path(__file__).parent / "driver.cc"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "sanitizers"),
    [
        pytest.param("native", "address,undefined", marks=pytest.mark.representative),
        ("native", "thread"),
        ("x86-64-v3", "address,undefined"),
        # Vectors of the compiler alone, as on any other processor.
        ("x86-64", "address,undefined"),
    ],
)
def test_results_are_those_of_plain_loops_and_sanitizers_find_nothing(tmp_path, arch, sanitizers):
    program = tmp_path / "driver"
    flags = f"-O1 -g -march={arch} -std=c++17 -pthread -w -fno-sanitize-recover=all".split()
    build = ["g++", *flags, f"-fsanitize={sanitizers}", f"-I{SOURCES}", DRIVER, "-o", program]
    subprocess.run(build, check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "equal\n", "")
