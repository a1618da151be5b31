"""Each case runs in a process of its own, since kernels are registered once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lwm.folders import cache_folder
from lwm.ops.cpu import build

PROGRAM = """
import jax, numpy as np
from lwm.model.linear import linear
from lwm.sharding import make_mesh
x = np.arange(6, dtype=np.float32).reshape(2, 1, 3)
weight = jax.numpy.ones((3, 20), "bfloat16")
with jax.set_mesh(make_mesh()):
    assert (np.asarray(linear(x, weight)) == x.sum(-1, keepdims=True)).all()
    print("kernel" if "lwm_product" in jax.jit(linear).lower(x, weight).as_text() else "plain")
"""


def start(**environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen) -> tuple[str, list[str]]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.strip(), err.splitlines()


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """A cache of this test alone that has the compiled kernels."""
    assert build.target("product_rows")
    shutil.copytree(cache_folder() / "kernels", tmp_path / "kernels")
    return tmp_path


def test_compiled_kernels_are_used_again(compiled):
    folder = compiled / "kernels"
    files = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    found = end(start(LWM_CACHE=str(compiled)))
    assert found == ("kernel", [])
    assert files == {file: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_without_a_compiler_one_line_says_how_to_get_one(compiled):
    out, lines = end(start(LWM_CACHE=str(compiled), PATH=str(compiled)))
    assert out == "plain"
    assert len(lines) == 1
    assert "apt install g++" in lines[0]


@pytest.mark.slow
@pytest.mark.representative
def test_broken_compilers_and_unsafe_folders_cost_one_line(compiled, tmp_path_factory):
    off = start(LWM_CPU_KERNELS="0", LWM_CACHE=str(compiled))
    compilers = []
    for body in ("echo error: out of registers >&2; exit 1", "exit 0"):
        cache = tmp_path_factory.mktemp("compiler")
        compiler = cache / "c++"
        compiler.write_text(f"#!/bin/sh\n{body}\n")
        compiler.chmod(0o755)
        compilers.append((cache / "kernels", start(LWM_CACHE=str(cache), CXX=str(compiler))))
    a_file, of_others = (tmp_path_factory.mktemp("cache") / "kernels" for _ in range(2))
    a_file.write_text("")
    of_others.mkdir()
    of_others.chmod(0o777)
    unsafe = [(folder, start(LWM_CACHE=str(folder.parent))) for folder in (a_file, of_others)]

    assert end(off) == ("plain", [])
    for folder, process in compilers:
        out, lines = end(process)
        assert (out, len(lines), list(folder.iterdir())) == ("plain", 1, []), lines
    for folder, process in unsafe:
        out, lines = end(process)
        assert (out, len(lines)) == ("kernel", 1), lines
        assert str(folder) in lines[0]
        assert folder.is_file() or not list(folder.iterdir())


@pytest.mark.slow
def test_two_processes_compile_at_once_and_a_broken_library_is_made_again(tmp_path):
    environment = {"LWM_CACHE": str(tmp_path), "LWM_CPU_ARCH": "x86-64-v3"}
    processes = [start(**environment) for _ in range(2)]
    assert [end(process) for process in processes] == [("kernel", [])] * 2
    (file,) = (tmp_path / "kernels").iterdir()
    assert (tmp_path / "kernels").stat().st_mode & 0o777 == 0o700
    size = file.stat().st_size
    file.write_bytes(b"no library")
    assert end(start(**environment)) == ("kernel", [])
    assert file.stat().st_size == size
