import json
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lwm.distributed import Processes, join
from lwm.errors import UserError
from lwm.sharding import inside_host

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.slow
@pytest.mark.representative
def test_two_processes_compute_what_one_does(tmp_path):
    """A loss and its gradients, and scores of held-out frames, of which the first alone draws."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    running = [
        subprocess.Popen([sys.executable, SCRIPT, coordinator, str(index), tmp_path])
        for index in range(2)
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    alone = runpy.run_path(str(SCRIPT))
    gradients, scores = alone["compute"](), alone["measure"]("1,1,1,1", tmp_path / "alone")
    for index in range(2):
        with np.load(tmp_path / f"{index}.npz") as found:
            for name, value in zip(found.files, gradients, strict=True):
                error = np.abs(found[name] - value).max()
                assert error <= 1e-4 * max(np.abs(value).max(), 1e-6), name
        assert json.loads((tmp_path / f"{index}.json").read_text()) == scores
    drawn = [path.name for path in sorted(tmp_path.rglob("*.png"))]
    assert drawn == ["some-0.png"] * 2
    assert not list((tmp_path / "1").iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Processes(count=2), "give its address, host:port"),
        (Processes(coordinator="localhost:1"), "without a count and an index"),
        (Processes(coordinator="localhost:1", count=2, index=2), "index 2 is not among 2"),
        (Processes(coordinator="localhost", count=2, index=0), "'localhost' has no port"),
    ],
)
def test_what_cannot_be_joined(given, message):
    with pytest.raises(UserError, match=message):
        join(given)


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-009],other",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.mark.parametrize(
    ("variables", "host", "index"), [(SLURM, "node007", 2), (OPEN_MPI, "10.96.0.1", 3)]
)
def test_a_cluster_numbers_its_processes(monkeypatch, variables, host, index):
    found = []
    monkeypatch.setattr("lwm.distributed._join", lambda *given: found.append(given))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    join(Processes(coordinator="auto", timeout=7))
    ((coordinator, count, number, timeout),) = found
    assert coordinator.rpartition(":")[0] == host
    assert 61_440 <= int(coordinator.rpartition(":")[2]) <= 65_535
    assert (count, number, timeout) == (4, index, 7.0)


def test_alone_nothing_happens():
    join(Processes())


@pytest.mark.parametrize(
    ("sizes", "devices", "inner"),
    [
        ((2, 2, 2, 2), 8, (1, 2, 2, 2)),
        ((1, 1, 4, 32), 8, (1, 1, 4, 2)),
        ((4, 8, 1, 1), 8, (1, 8, 1, 1)),
        ((16, 1, 1, 1), 8, (8, 1, 1, 1)),
        ((1, 1, 8, 2), 8, (1, 1, 8, 1)),
    ],
)
def test_fast_axes_lie_inside_a_host(sizes, devices, inner):
    assert inside_host(sizes, devices) == inner


def test_what_does_not_fill_a_host_is_refused():
    with pytest.raises(UserError, match="mesh 3,1,1,5 cannot be split over hosts of 8"):
        inside_host((3, 1, 1, 5), 8)
