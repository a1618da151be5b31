"""Shards written by actors of Ray are those that are written here."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture
def media(tmp_path, vqgan):
    (tmp_path / "vqgan").symlink_to(vqgan)
    (tmp_path / "x").mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        pixels = rng.integers(0, 256, (40, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "x" / f"{number:02}.png")
        (tmp_path / "x" / f"{number:02}.txt").write_text(f"picture {number}")
    (tmp_path / "x" / "bad.png").write_bytes(b"")
    return tmp_path


def tokenize(folder: Path, out: str, *options: str) -> subprocess.CompletedProcess:
    """Runs in a process of its own, as Ray has warnings of its own and leaves files open."""
    command = ["tokenize", str(folder / "x"), "--vqgan", str(folder / "vqgan"), "--shards", "4"]
    command += ["--out", str(folder / out), "--max-bad-share", "0.1", *options]
    return subprocess.run(
        [sys.executable, "-c", "from lwm.cli.app import main; main()", *command],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"},
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
@pytest.mark.representative
def test_ray_writes_the_same_shards(media):
    pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("array_record", reason="array_record is not installed")
    there = tokenize(media, "there", "--engine", "ray", "--workers", "2")
    assert there.returncode == 0, there.stderr
    here = tokenize(media, "here")
    assert here.returncode == 0, here.stderr
    assert files(media / "there") == files(media / "here")
    assert there.stdout == here.stdout
    many = tokenize(media, "there", "--engine", "ray", "--workers", "1000")
    assert many.returncode == 2
    assert "workers, not for 1000" in many.stderr
    wrong = tokenize(media, "there", "--engine", "ray", "--resolution", "30")
    assert wrong.returncode == 2
    *_, fault = wrong.stderr.splitlines()
    assert fault.startswith("lwm: frames of 30 × 30 pixels do not divide into codes")
    assert "Traceback" not in wrong.stderr


def test_without_ray_the_extra_is_named(media, tmp_path):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "ray.py").write_text("raise ImportError")
    command = ["tokenize", str(media / "x"), "--vqgan", str(media / "vqgan"), "--engine", "ray"]
    found = subprocess.run(
        [sys.executable, "-c", "from lwm.cli.app import main; main()", *command, "--out", "o"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "hidden")},
    )
    assert found.returncode == 2
    assert found.stderr == "lwm: --engine ray needs ray: pip install 'lwm[ray]'\n"
    assert not (tmp_path / "o").exists()
