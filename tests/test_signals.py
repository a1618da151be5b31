"""Signals, in processes of their own."""

import signal
import subprocess
import sys
import time
from typing import Any

import pytest

CODE = """
import hashlib, os, signal, sys, time
from lwm import signals
from lwm.signals import answered, ending, stop_requests
signals._PATIENCE = 0.2

def compile():
    # As XLA does, it lets other threads work, but no handler of a signal runs until it ends.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def start(code) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_ctrl_c_is_answered_while_a_program_compiles_and_the_second_ends_it():
    with start(
        "with stop_requests('stopping', signal.SIGINT): print('ready', flush=True); compile()"
    ) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "stopping\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("number", "work"),
    [
        (signal.SIGTERM, "time.sleep(99)"),
        (signal.SIGHUP, "time.sleep(99)"),
        (signal.SIGTERM, "compile()"),
    ],
)
def test_a_process_that_is_asked_to_end_cleans_up_if_it_can(number, work):
    with start(
        "with ending(), answered('stopping', signal.SIGINT):\n"
        f"  try: print('ready', flush=True); {work}\n"
        "  finally: print('cleaned')"
    ) as process:
        time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert process.stdout.read() == ("" if "compile" in work else "cleaned\n")
        assert process.stderr.read() == ""


def test_what_a_process_was_started_to_ignore_it_ignores():
    code = (
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with ending(), answered(''): print('ready', flush=True); print(input())"
    )
    command = [sys.executable, "-c", CODE + code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.communicate("went on\n", 20)[0] == "went on\n"


def test_signals_of_a_forked_process_are_its_own():
    with start(
        "with ending(), answered('', signal.SIGINT):\n"
        "  if not (child := os.fork()): time.sleep(99)\n"
        "  print('ready', flush=True); time.sleep(0.2); os.kill(child, signal.SIGTERM)\n"
        "  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True); time.sleep(0.5)"
    ) as process:
        assert process.wait(20) == 0
        assert process.stdout.read() == "143\n"
