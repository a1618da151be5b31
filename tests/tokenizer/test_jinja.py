"""Chat templates run in a process of their own: its limits, and when it starts and ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lwm.errors import UserError
from lwm.tokenizer import jinja
from lwm.tokenizer.jinja import render

MESSAGES = [{"role": "user", "content": "a"}]
ECHO = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Lets a template that has taken too much run again, in another test."""
    monkeypatch.setattr(jinja, "_exceeded", jinja.collections.Counter())


def is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_template_without_end_is_ended_and_not_run_again(monkeypatch):
    monkeypatch.setattr(jinja, "_SECONDS", 0)
    monkeypatch.setattr(jinja, "_TRIES", 1)
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    for words in ["takes more than 0 seconds", "has taken too much"]:
        with pytest.raises(UserError, match=words) as caught:
            render(loops, MESSAGES, {})
        assert "\n" not in str(caught.value)
    assert render(ECHO, MESSAGES, {}).text == "a"


def test_large_requests_do_not_end_the_template_of_others(monkeypatch):
    def ended(request):
        raise jinja._Ended("takes more than 3 seconds of processor time")

    monkeypatch.setattr(jinja, "_ask", ended)
    for _ in range(jinja._TRIES + 1):
        with pytest.raises(UserError, match="takes more than 3 seconds"):
            render(ECHO, MESSAGES, {"documents": ["a"] * jinja._SMALL})
    monkeypatch.undo()
    assert render(ECHO, MESSAGES, {}).text == "a"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 'a' * 99999999999 }}", "MiB of memory|cannot render"),
        ("{% set x = 'a' * 999999999 %}", "MiB of memory|cannot render"),
        ("{{ '%999999999999d' % 1 }}", "memory|cannot render"),
        ("{{ messages[0].content * 2000000000 }}", "memory|cannot render"),
        ("{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "writes more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "not valid Jinja"),
        ("{% for i in messages %}" * 60 + "{% endfor %}" * 60, "not valid Jinja"),
        ("{{ raise_exception('no\nno') }}", "conversation: no$"),
        ("{{ messages | tojson(indent='x', default=1) }}{{ 1 % 0 }}", "cannot render"),
    ],
)
def test_what_a_template_takes_has_a_limit_and_its_errors_one_line(template, words):
    with pytest.raises(UserError, match=words) as caught:
        render(template, MESSAGES, {})
    assert "\n" not in str(caught.value)
    assert render(ECHO, MESSAGES, {}).text == "a"


def test_long_conversations_have_more_room():
    messages = [{"role": "user", "content": "a" * 2**20}] * 17
    assert render(ECHO, messages, {}).text == "a" * 2**20 * 17


def test_variables_that_cannot_be_passed_on_are_refused():
    with pytest.raises(UserError, match="variable of the chat template cannot be passed on"):
        render("{{ x }}", MESSAGES, {"x": lambda: 1})
    assert render("{{ x[1] }}", MESSAGES, {"x": {1: "one"}}).text == "one"


def test_lone_surrogates_pass_through():
    assert render("{{ x }}", MESSAGES, {"x": "\ud800"}).text == "\ud800"


def test_a_killed_process_is_started_again():
    render(ECHO, MESSAGES, {})
    assert jinja._process is not None
    process = jinja._process._process
    process.kill()
    process.wait()
    assert render(ECHO, MESSAGES, {}).text == "a"


def test_a_process_that_does_not_answer_is_waited_for_once(monkeypatch):
    render(ECHO, MESSAGES, {})
    monkeypatch.setattr(jinja, "_WAIT", 0.2)
    assert jinja._process is not None
    jinja._process._process.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=r"the chat template has not answered for 0\.2 seconds"):
        render(ECHO, MESSAGES, {})
    monkeypatch.undo()
    assert render(ECHO, MESSAGES, {}).text == "a"


def test_threads_get_their_own_answers():
    wrong = []

    def work(name):
        for number in range(50):
            text = f"{name} {number}"
            if render(ECHO, [{"content": text}], {}).text != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_has_a_process_of_its_own():
    render(ECHO, MESSAGES, {})
    if (child := os.fork()) == 0:
        same = all(render(ECHO, [{"content": "b"}], {}).text == "b" for _ in range(20))
        jinja._stop()
        os._exit(0 if same else 1)
    for _ in range(20):
        assert render(ECHO, MESSAGES, {}).text == "a"
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)", "render('{{ 1 +', [], {})"])
def test_the_process_ends_with_the_program(end):
    code = (
        "import os\nfrom lwm.tokenizer import jinja\nfrom lwm.tokenizer.jinja import render\n"
        "render('x', [], {})\nprint(jinja._process._process.pid, flush=True)\n" + end
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (0, 1, -signal.SIGKILL)
    if end == "pass":
        assert done.stderr == ""
    deadline = time.monotonic() + 10
    while is_running(done.stdout.strip()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
