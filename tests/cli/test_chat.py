import os
import signal
from pathlib import Path

import pytest

from lwm.cli import chat as command, common, terminal
from lwm.console import Interruptible
from lwm.errors import UserError
from lwm.generate.chat import Conversation
from lwm.sampling_params import SamplingParams

SHORT = SamplingParams(max_tokens=24)


@pytest.fixture
def typed(monkeypatch):
    """Types lines; an exception among them is raised, and then the input ends."""

    def type_in(*lines):
        waiting = iter(lines)

        def read(prompt=""):
            line = next(waiting, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)

    return type_in


def test_turns_are_answered_and_can_be_forgotten(model, typed, capsys):
    typed("Hello", "", "/clear", "Hello")
    terminal.TerminalChat(model, sampling=SHORT).run()
    shown = capsys.readouterr()
    assert len(shown.out) % 2 == 0
    first, second = shown.out[: len(shown.out) // 2], shown.out[len(shown.out) // 2 :]
    assert first == second == model.chat("Hello", max_tokens=24) + "\n"
    assert shown.err.count("[cut at 24 tokens") == 2


def test_a_fault_costs_the_turn_only(model, typed, capsys):
    typed("x" * 600, KeyboardInterrupt(), "Hello")
    terminal.TerminalChat(model, sampling=SHORT).run()
    shown = capsys.readouterr()
    assert "lwm: the prompt has" in shown.err
    assert "Ctrl-D leaves" in shown.err
    assert shown.out == model.chat("Hello", max_tokens=24) + "\n"


def test_piped_questions_that_failed_are_an_error_after_the_rest(model, typed, capsys, monkeypatch):
    monkeypatch.setattr(command, "open_model", lambda *_: model)
    typed("x" * 600, "", "/clear", "Hello", "/image none.png")
    with pytest.raises(UserError, match="2 of 3 questions failed; the reasons are above"):
        command.chat("tiny", sampling=SHORT)
    assert capsys.readouterr().out == model.chat("Hello", max_tokens=24) + "\n"
    typed("Hello")
    command.chat("tiny", sampling=SHORT)


def test_ctrl_c_stops_the_answer_and_not_the_program(model, typed, capsys, monkeypatch):
    def press(*arguments, **options):
        # As the terminal would, once something has been printed.
        print(*arguments, **options)
        if options.get("end") == "" and not pressed:
            pressed.append(arguments[0])
            signal.raise_signal(signal.SIGINT)

    pressed, before = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(common, "print", press, raising=False)
    typed("Hello", "Go on")
    terminal.TerminalChat(model, sampling=SamplingParams(max_tokens=100)).run()
    shown = capsys.readouterr()
    assert "[stopped]" in shown.err
    whole = model.chat("Hello", max_tokens=100)
    assert pressed[0]
    assert whole.startswith(pressed[0])
    assert shown.out.startswith(pressed[0])
    assert not shown.out.startswith(whole)
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_input_there_is_no_talk(model, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="there is no question, and no input"):
        terminal.TerminalChat(model).run()


def test_the_second_ctrl_c_stops_at_once():
    with Interruptible() as user:
        signal.raise_signal(signal.SIGINT)
        assert user.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_is_piped_in_beside_a_question_is_the_document(model, capfd, monkeypatch):
    monkeypatch.setattr(command, "open_model", lambda *_: model)
    with pytest.raises(UserError, match="give the question after the model"):
        command.chat("tiny", document=(Path("-"),))
    for text, document in (("A text.\n", "A text.\n"), (" \n", None)):
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        with open(reading) as piped:
            monkeypatch.setattr("sys.stdin", piped)
            command.chat("tiny", "What is it?", sampling=SHORT)
        shown = capfd.readouterr()
        asked = Conversation(model, document=document).question("What is it?")
        assert shown.out == model.chat(asked.text, max_tokens=24) + "\n"
        assert ("8 characters on stdin are the document" in shown.err) == (document is not None)


def test_documents_that_cannot_be_read_are_named(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(UserError, match=r"empty.txt is empty"):
        terminal.document_of(empty)
    with pytest.raises(UserError, match="holds no document"):
        terminal.document_of(tmp_path)
