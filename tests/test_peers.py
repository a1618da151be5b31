"""Processes that meet, and that end when another one is gone, without JAX."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from lwm import peers
from lwm.errors import UserError
from lwm.peers import Meeting, meet

WORKER = """
import os, resource, sys, time
from lwm import peers
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 2048), most))
files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]  # as of a set of many shards
index, address, peers._EVERY, peers._GRACE, peers._QUIET = int(sys.argv[1]), sys.argv[2], .1, .1, .1
if index:
    lines = {0: peers.meet(address, index, 3, 20)[0]}
else:
    lines = peers.Meeting(address, 3, 20).wait()
watch = peers.Peers(lines, 1)
print("ready", flush=True)
if input():
    watch.leave()
    sys.stdin.read()
"""


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(peers, "_QUIET", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


@pytest.fixture
def three(address):
    """Three processes that have met."""
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(index), address],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for index in range(3)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    yield running
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("gone", "number", "said"),
    [
        (0, signal.SIGKILL, "lwm: process 0 has ended; see its messages"),
        (2, signal.SIGSTOP, "lwm: process 2 has not answered for 1 s"),
    ],
)
def test_a_process_that_is_gone_or_silent_ends_the_others_with_its_name(three, gone, number, said):
    three[gone].send_signal(number)
    for index, process in enumerate(three):
        if index != gone:
            assert process.wait(20) == 1
            assert process.stderr.read().splitlines()[-1] == said


def test_a_process_that_leaves_ends_no_other(three):
    """Nor if its own end takes longer than the others would wait for an answer."""
    three[1].stdin.write("leave\n")
    three[1].stdin.flush()
    time.sleep(2)
    assert [process.poll() for process in three] == [None, None, None]
    said = [three[index].communicate("leave\n" * (index != 1))[1] for index in (1, 0, 2)]
    assert [process.returncode for process in three] == [0, 0, 0]
    assert not any("not answer" in each for each in said)


def test_a_coordinator_that_cannot_be_reached_is_named_and_waited_for_in_words(address, capfd):
    with pytest.raises(UserError, match=rf"process 1 could not join the others at {address} with"):
        meet(address, 1, 2, 0.5)
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert f"process 1 cannot reach process 0 at {address} (Connection refused); waiting" in err


def test_a_port_at_which_something_else_answers(address):
    host, port = peers.split(address)
    with socket.create_server((host, port)), pytest.raises(UserError, match="did not join in time"):
        meet(address, 1, 2, 0.3)


def test_processes_that_do_not_come_are_named(address, capfd):
    with pytest.raises(UserError, match=r"processes 1, 2 of 3 did not join at .*--processes\.time"):
        Meeting(address, 3, 0.3).wait()
    assert capfd.readouterr().err == (
        "lwm: processes 1, 2 of 3 not here yet; waiting up to 0.3 s (--processes.timeout)\n"
    )
    with pytest.raises(UserError, match=r"cannot listen at port .*: Address already in use"):
        Meeting(address, 3, 0.3)


@pytest.mark.parametrize(
    ("index", "count", "said"),
    [
        (1, 4, "process 0 has a count of 3, process 1 4"),
        (2, 3, "there is another process 2; give each its own index"),
    ],
)
def test_processes_that_do_not_agree(address, index, count, said):
    meeting = Meeting(address, 3, 5.0)
    with socket.create_connection(peers.split(address)) as first:
        first.send(b"lwm 2 3\n")
        while not meeting._lines:
            time.sleep(0.01)
        with pytest.raises(UserError, match=said):
            meet(address, index, count, 5.0)
