"""A chat in a pseudo-terminal: what is typed and pasted, and what stands on the screen."""

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

import jax
import pyte
import pytest

from lwm.convert.export import save_model
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

_IN_A_SESSION = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # Ctrl-C now reaches this session
os.execv(sys.argv[1], sys.argv[1:])
"""
PASTE = "\x1b[200~{}\x1b[201~"


class Terminal:
    """A command in a pseudo-terminal, and its screen."""

    def __init__(self, command, environment, *, lines=40, columns=100):
        self.screen = pyte.HistoryScreen(columns, lines, history=5000)
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = pty.openpty()
        # Programs ask where the cursor is.
        setattr(self.screen, "write_process_input", self._answer)  # noqa: B010  (it is a method)
        self.resize(lines, columns)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_A_SESSION, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | environment | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)

    def resize(self, lines, columns):
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def _answer(self, text):
        os.write(self._ours, text.encode())

    def type(self, text):
        data = text.encode()
        while data:
            data = data[os.write(self._ours, data[:1024]) :]
            self.read(0.01)

    def read(self, seconds):
        """Shows what is written within some seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._ours], [], [], left)[0]:
                return
            try:
                self._stream.feed(os.read(self._ours, 1 << 16))
            except OSError:  # the program has ended
                return

    @property
    def text(self):
        """The text of the screen, and of the lines above it."""
        above = ("".join(line[at].data for at in sorted(line)) for line in self.screen.history.top)
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display])

    def wait(self, text, *, seconds=60, times=1):
        """Waits until a text stands there so often."""
        until = time.monotonic() + seconds
        while self.text.count(text) < times:
            assert time.monotonic() < until, self.text
            self.read(0.2)

    def end(self):
        until = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < until:
            self.read(0.1)
        return self.process.poll()


@pytest.fixture(scope="module")
def folder(tiny, init, byte_tokenizer, tmp_path_factory):
    """The folder of a model."""
    folder = tmp_path_factory.mktemp("chat")
    tokens = TokenSpace(text=byte_tokenizer.vocab_size)
    with jax.set_mesh(make_mesh()):
        model = init(tiny(tokens=tokens, num_layers=1, max_context=4096)).unstack()
        save_model(model, byte_tokenizer, folder / "model")
    return folder


@pytest.fixture(scope="module")
def terminal(folder):
    command = [sys.executable, "-m", "lwm", "chat", str(folder / "model"), "--max-tokens", "4"]
    found = Terminal(command, {"LWM_CACHE": str(folder / "cache")})
    try:
        found.wait("is listening. Ctrl-C stops an answer")
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def said(terminal, folder, name):
    """The conversation so far, as the command /save writes it."""
    terminal.type(f"/save {folder / name}\r")
    until = time.monotonic() + 60
    while not (folder / name).exists():
        assert time.monotonic() < until, terminal.text
        terminal.read(0.2)
    return json.loads((folder / name).read_text())["messages"]


@pytest.mark.slow
@pytest.mark.representative
def test_a_chat_in_a_terminal(terminal, folder):
    pasted = "\n".join(f"line {number} of a text that was pasted" for number in range(40))
    terminal.type(PASTE.format(pasted))
    terminal.wait("line 39 of a text")
    terminal.type("\r")
    terminal.wait("[cut at 4 tokens; see --max-tokens]")
    terminal.wait("of 4,096 tokens")
    first, answer = said(terminal, folder, "pasted.json")
    assert (first["role"], first["content"]) == ("user", pasted)
    assert answer["role"] == "assistant"

    terminal.type("你好 🙂 Größe\r")
    terminal.wait("[cut at 4 tokens; see --max-tokens]", times=2)
    assert "你好" in terminal.text.replace(" ", "")
    assert said(terminal, folder, "letters.json")[2]["content"] == "你好 🙂 Größe"

    terminal.type("/undo\r")
    assert said(terminal, folder, "undone.json") == [first, answer]
    terminal.type("/claer\r")
    terminal.wait("lwm: there is no command /claer; did you mean /clear?")
    terminal.type("/set temprature 0.2\r")
    terminal.wait("no parameter is called 'temprature'; did you mean temperature?")
    terminal.type("/set temperature warm\r")
    terminal.wait("lwm: temperature is a number, and cannot be 'warm'")

    terminal.resize(30, 60)
    terminal.type(PASTE.format("x" * 100_000))
    terminal.type("\r")
    terminal.wait("lwm: the prompt has 101,")
    terminal.type("/clear\r/tokens\r")
    terminal.wait("0 of 4,096 tokens; /undo and /clear make room")
    terminal.type(f"/load {folder / 'letters.json'}\r")
    terminal.wait("2 questions and answers")
    assert said(terminal, folder, "again.json")[2]["content"] == "你好 🙂 Größe"

    terminal.type("half a question\x03")
    terminal.wait("Ctrl-C again leaves, as Ctrl-D does.")
    terminal.type("/tokens\r")  # it goes on
    terminal.wait("make room", times=2)
    terminal.type("\x03")
    terminal.wait("Ctrl-C again leaves, as Ctrl-D does.", times=2)
    terminal.type("\x03")
    assert terminal.end() == 0

    again(folder)


def again(folder):
    """The next chat has the history, which nobody else can read; Ctrl-D leaves it."""
    command = [sys.executable, "-m", "lwm", "chat", str(folder / "model"), "--max-tokens", "4"]
    terminal = Terminal(command, {"LWM_CACHE": str(folder / "cache")})
    terminal.wait("is listening")
    history = folder / "cache" / "chat-history"
    assert history.stat().st_mode & 0o777 == 0o600
    terminal.type("\x1b[A")  # upwards
    terminal.wait("> /tokens")
    terminal.type("\x15\x04")  # the line is emptied, and Ctrl-D
    assert terminal.end() == 0
