"""Commands of a chat: paths, parameters, and what is said to those who mistype."""

import json

import numpy as np
import pytest

from lwm.cli.chat_commands import COMMANDS, NAMES, changed, file_and_rest, require_command, saved
from lwm.cli.terminal import TerminalChat
from lwm.cli.wrap import Wrapped
from lwm.data.conversation import read_conversation
from lwm.errors import UserError
from lwm.sampling_params import SamplingParams
from lwm.tokenizer.message import Message, Vision


@pytest.mark.parametrize(
    ("typed", "path", "rest"),
    [
        ("a.png", "a.png", ""),
        ("a.png what is this?", "a.png", "what is this?"),
        ("'my film.mp4' who's there?", "my film.mp4", "who's there?"),
        (r"my\ film.mp4 what?", "my film.mp4", "what?"),
        ("it's.png", "it's.png", ""),
    ],
)
def test_paths_may_be_quoted_and_questions_follow(typed, path, rest):
    assert file_and_rest(typed) == (path, rest)


def test_a_path_with_spaces_that_is_there_needs_no_quotes(tmp_path):
    file = tmp_path / "my film.mp4"
    file.write_bytes(b"")
    assert file_and_rest(f" {file} ") == (str(file), "")
    with pytest.raises(UserError, match="give a file after the command"):
        file_and_rest(" ")


def test_parameters_change_by_name():
    params = changed(SamplingParams(), "temperature 0.2")
    assert params.temperature == 0.2
    assert changed(params, "top-k 40").top_k == 40
    assert changed(params, "max_tokens none").max_tokens is None
    assert changed(params, "stop END").stop == ("END",)
    for text, said in (
        ("temprature 1", "did you mean temperature"),
        ("xyzzy 1", "there are max_tokens, temperature"),
        ("top_k many", "top_k is a number, and cannot be 'many'"),
        ("top_p 3", "top_p 3.0 must be above 0 and at most 1"),
    ):
        with pytest.raises(UserError, match=said):
            changed(params, text)


def test_every_command_that_is_listed_exists():
    for name in {*NAMES} - {"/quit"}:
        assert hasattr(TerminalChat, f"_do_{name[1:]}")
    for usage in COMMANDS:
        require_command(usage.split()[0])
    with pytest.raises(UserError, match="no command /imgae; did you mean /image"):
        require_command("/imgae")
    with pytest.raises(UserError, match="no command /xyzzy; /help lists them"):
        require_command("/xyzzy")


def test_a_saved_conversation_is_a_record_to_train_on():
    film = Vision(codes=np.arange(8, dtype=np.int32).reshape(2, 4), is_video=True)
    said = [Message("user", ("What is this?", film)), Message("assistant", ("A whale ü.",))]
    record = json.loads(saved("Be brief.", said))
    system, *read = read_conversation(record, tokens_per_frame=4).messages
    assert system == Message("system", ("Be brief.",))
    assert read[1] == said[1]
    assert read[0].text == "What is this?"
    np.testing.assert_array_equal(read[0].visions[0].codes, film.codes)


def test_turns_are_undone_asked_again_saved_and_loaded(model, tmp_path, capsys):
    chat = TerminalChat(model, sampling=SamplingParams(max_tokens=8, temperature=1.0))
    chat._take("Hello")
    first = chat.conversation.messages
    chat._take("And now?")
    chat._take("/undo")
    assert chat.conversation.messages == first
    chat._take("/retry")
    again = chat.conversation.messages
    assert again[0] == first[0]
    assert again[1] != first[1]
    chat._sampling = SamplingParams(max_tokens=5000)
    with pytest.raises(UserError, match="the prompt has"):
        chat._take("/retry")
    assert chat.conversation.messages == again  # nothing is lost
    chat._take("/system Be brief.")
    chat._take(f"/save {tmp_path / 'chat.json'}")
    with pytest.raises(UserError, match=r"chat\.json exists; give another file"):
        chat._take(f"/save {tmp_path / 'chat.json'}")
    with pytest.raises(UserError, match="'b' follows the file; put a name with spaces in quotes"):
        chat._take(f"/save {tmp_path / 'a'} b")
    with pytest.raises(UserError, match="nowhere is no file; give one that /save has written"):
        chat._take("/load nowhere")
    other = TerminalChat(model, sampling=SamplingParams(max_tokens=8))
    other._take(f"/load {tmp_path / 'chat.json'}")
    assert other.conversation.system == "Be brief."
    texts = [one.text for one in again]
    assert [one.text for one in other.conversation.messages] == texts
    other._take("/clear")
    for command in ("/undo", "/retry"):
        with pytest.raises(UserError, match="there is no question yet"):
            other._take(command)
    file = tmp_path / "a.txt"
    file.write_text("A text.")
    other._take(f"/document {file} What is it?")
    assert other.conversation.messages[0].text == "A text.\n\nWhat is it?"
    other._take(f"/document {file}")
    other._take("/retry")
    other._take("And this?")
    assert other.conversation.messages[2].text == "A text.\n\nAnd this?"
    capsys.readouterr()


def test_lines_break_between_words():
    written, wide = [], 12
    wrapped = Wrapped(written.append, width=lambda: wide)
    for piece in (
        "A line of",
        " wor",
        "ds,\n  indented",
        " 你好你好 and",
        "averylongwordindeed on",
    ):
        wrapped.add(piece)
    wide = 40
    wrapped.add(" a wider line that goes on")
    wrapped.end()
    assert "".join(written).splitlines() == [
        "A line of",
        "words,",
        "  indented",
        "你好你好",
        "andaverylongwordindeed on a wider line that goes on",  # the terminal breaks such a word
    ]
