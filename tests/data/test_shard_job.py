"""Writing a shard: what the disk refuses is one line, and faults of ours show as themselves."""

import os
from pathlib import Path

import numpy as np
import pytest

from lwm.data.shard_job import ShardJob, record_writer
from lwm.errors import UserError

pytest.importorskip("array_record", reason="array_record is not installed")
FULL = Path("/dev/full")


@pytest.fixture
def job(tmp_path):
    return ShardJob(folder=tmp_path, kind="media", shards=1, size=1, input={})


def write_to(file, error=None):
    with record_writer(file) as write:
        write(b"record")
        if error:
            raise error
    return {}


@pytest.mark.skipif(not FULL.exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_told_in_a_line(job):
    with pytest.raises(UserError) as caught:
        job.write(0, lambda file: write_to(FULL))
    message = str(caught.value)
    assert message.startswith(f"{job.folder / job.name(0)} cannot be written: ")
    assert "No space left on device" in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"media\.json cannot be written: No space left on device"):
        job.write_file("media.json", lambda file: FULL.write_text("x"))
    with pytest.raises(KeyboardInterrupt):
        job.write(0, lambda file: write_to(FULL, KeyboardInterrupt()))
    assert not os.listdir(job.folder)


@pytest.mark.skipif(not FULL.exists(), reason="this system has no disk that is always full")
def test_a_disk_is_full_before_the_last_record(job):
    noise, written = np.random.default_rng(0).bytes(1 << 16), []

    def fill(file):
        with record_writer(FULL) as write:
            for _ in range(1 << 13):
                write(noise)
            written.append("all")
        return {}

    with pytest.raises(UserError, match=r"cannot be written: .*No space left on device"):
        job.write(0, fill)
    assert not written


@pytest.mark.parametrize("error", [TypeError, KeyError, RuntimeError, AssertionError])
def test_faults_of_a_program_show_as_themselves(job, error):
    with pytest.raises(error, match="ours"):
        job.write(0, lambda file: write_to(file, error("ours")))
    with pytest.raises(TypeError):
        job.write(0, lambda file: {"no JSON": write_to(file)} | {"bytes": b""})
    with pytest.raises(error, match="ours"):
        job.write_file("media.json", lambda file: write_to(file, error("ours")))
    assert job.missing() == [0]
